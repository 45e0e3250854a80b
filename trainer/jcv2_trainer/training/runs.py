"""Manage run folders, which hold the checkpoints, and the replacement of older results."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jcv2_plugin.evaluation.study import environment
from jcv2_plugin.files import write_atomically
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.processes import is_first_process
from jcv2_trainer.training.trainer import last_checkpoint

REPORT = "training.json"
_PACKAGES = ("jcv2-plugin", "torch", "sentence-transformers", "transformers", "accelerate", "peft")


@dataclass(frozen=True)
class RunFolder:
    """``<out>.run``: the rows as Arrow, the checkpoints, and ``run.json``, which identifies the run.

    It is separate from the output folder, which is therefore either a complete model or absent.
    """

    folder: Path
    out: Path

    @classmethod
    def open(cls, out: Path, identity: Mapping[str, Any], *, resume: bool, force: bool) -> RunFolder:
        """Create the folder, or open that of an unfinished run.

        Args:
            out: Output folder of the result.
            identity: What must stay the same to resume a run: model, data, settings.
            resume: Resume from the last checkpoint.
            force: Replace a result, and restart an unfinished run.

        Raises:
            TrainingError: ``out`` is taken, there is an unfinished run, or (with ``resume``) there is none or a
                different one.
        """
        out = out.expanduser().absolute()
        run = cls(out.with_name(f"{out.name}.run"), out)
        refuse_taken(out, force)
        recorded = run._recorded()
        plain = json.loads(json.dumps(identity))
        if resume:
            run._check_same(recorded, plain)
        elif last_checkpoint(run.folder) is not None and not force:
            raise TrainingError(
                f"{run.folder} holds an unfinished run. Go on with --resume, or start anew with --force."
            )
        if is_first_process():
            run._begin(plain, resume)
        return run

    def _begin(self, identity: dict[str, Any], resume: bool) -> None:
        if not resume:
            for checkpoint in self.folder.glob("checkpoint-*"):
                shutil.rmtree(checkpoint)
            for name in ("before.json", "scale.json"):
                (self.folder / name).unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write("run.json", identity)

    def _recorded(self) -> dict[str, Any] | None:
        recorded: dict[str, Any] | None = self.read("run.json")
        return recorded

    def _check_same(self, recorded: dict[str, Any] | None, identity: dict[str, Any]) -> None:
        if recorded is None or last_checkpoint(self.folder) is None:
            raise TrainingError(
                f"There is no checkpoint in {self.folder} to resume from. Start without --resume; --out must be the "
                "one of the run that was stopped."
            )
        for name in {**recorded, **identity}:
            if recorded.get(name) != identity.get(name):
                raise TrainingError(
                    f"The run in {self.folder} has {name} = {recorded.get(name)!r:.200}, this command "
                    f"{identity.get(name)!r:.200}. Resume with what it had, or start anew with --force."
                )

    def read(self, name: str) -> Any:
        """Read a JSON file in the folder. Return None if it does not exist."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        write_atomically(self.folder / name, json.dumps(value, indent=1) + "\n")

    def clear(self) -> None:
        """Delete the folder, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def refuse_taken(out: Path, force: bool) -> None:
    """Raise if writing to ``out`` would overwrite anything but the result of a training.

    Raises:
        TrainingError: ``out`` is a file, contains something other than a trained model, or (without ``force``)
            anything.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise TrainingError(f"{out} is no folder. Choose another --out.")
    if not any(out.iterdir()):
        return
    if not (out / REPORT).is_file():
        raise TrainingError(f"{out} is not empty, and no result of a training. Choose another --out.")
    if not force:
        raise TrainingError(f"{out} holds a trained model already. Choose another --out, or replace it with --force.")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that training depends on."""
    return {"python": platform.python_version(), **environment.versions(_PACKAGES)}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the machine is out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
