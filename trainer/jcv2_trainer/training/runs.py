"""Manage run folders, which hold the checkpoints, and the replacement of older results."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jcv2_plugin.evaluation.study import environment
from jcv2_plugin.files import is_disk_full, read_json, write_atomically
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.mining.resumable import difference
from jcv2_trainer.processes import is_first_process
from jcv2_trainer.training.trainer import checkpoints, step_of, undamaged_checkpoint

REPORT = "training.json"
_PACKAGES = ("jcv2-plugin", "torch", "sentence-transformers", "transformers", "accelerate", "peft")


@dataclass(frozen=True)
class RunFolder:
    """``<out>.run``: the rows as Arrow, the checkpoints, and ``run.json``, which identifies the run.

    It is separate from the output folder, which is therefore either a complete model or absent.
    """

    folder: Path
    out: Path
    checkpoint: Path | None = None  # to resume from

    @classmethod
    def open(cls, out: Path, identity: Mapping[str, Any], *, resume: bool, force: bool) -> RunFolder:
        """Create the folder, or open that of an unfinished run of the same ``identity``.

        Checkpoints after the one to resume from, which are damaged or incomplete, are renamed to ``damaged-*``.

        Raises:
            TrainingError: ``out`` is taken, there is an unfinished run, or (with ``resume``) there is none, a different
                one, or none with an undamaged checkpoint.
        """
        out = out.expanduser().absolute()
        folder = out.with_name(f"{out.name}.run")
        refuse_taken(out, force)
        if links := [path for path in folder.glob("*") if path.is_symlink() and not path.is_dir()]:
            raise TrainingError(f"{links[0]} is a link, which would be written through. Remove it.")
        if not resume and checkpoints(folder) and not force:
            raise TrainingError(
                f"{folder} is an unfinished run. Continue it with --resume, or start anew with --force."
            )
        plain = json.loads(json.dumps(identity))
        if resume and checkpoints(folder) and (found := difference(cls(folder, out).read("run.json", {}) or {}, plain)):
            raise TrainingError(f"{folder}: {found}")
        run = cls(folder, out, undamaged_checkpoint(folder) if resume else None)
        if is_first_process():
            run._begin(plain)
        return run

    def _begin(self, identity: dict[str, Any]) -> None:
        for path in [*self.folder.glob("checkpoint-*"), *self.folder.glob("damaged-*")]:
            if self.checkpoint is None:
                shutil.rmtree(path)
            elif step_of(path) > step_of(self.checkpoint) and path.name.startswith("checkpoint-"):
                shutil.rmtree(aside := path.with_name(f"damaged-{path.name}"), ignore_errors=True)
                path.rename(aside)
        for name in ("before.json", "scale.json") if self.checkpoint is None else ():
            (self.folder / name).unlink(missing_ok=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.write("run.json", identity)

    def read(self, name: str, like: Any) -> Any:
        """Read a JSON file in the folder. Return None if it does not exist.

        ``like`` is an example of its content. Anything else is damage, a ``TrainingError``.
        """
        path = self.folder / name
        try:
            content = read_json(path) if path.is_file() else None
            if content is not None and not _is_like(content, like):
                raise ValueError(f"it has {content!r:.60}")
            return content
        except ValueError as error:
            raise TrainingError(f"{path} is damaged ({error}). Start anew with --force.") from error

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file atomically."""
        write_atomically(self.folder / name, json.dumps(value, indent=1) + "\n")

    def once(self, name: str, measure: Callable[[], Any], like: Any) -> Any:
        """Return what is measured on the initial model, and is read from a file when a run is resumed."""
        if (known := self.read(name, like)) is None:
            known = measure()
            if is_first_process():
                self.write(name, known)
        return known

    def clear(self) -> None:
        """Delete the folder, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _is_like(content: Any, example: Any) -> bool:
    if isinstance(example, dict):
        return isinstance(content, dict) and all(_is_like(content.get(key), one) for key, one in example.items())
    return isinstance(content, (int, float)) and not isinstance(content, bool)


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Keep other trainings from writing to the same folder meanwhile.

    Raises:
        TrainingError: Another one is running, or the disk is full.
    """
    out = out.expanduser().absolute()
    if not is_first_process():
        yield
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_name(f"{out.name}.run.lock")
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise TrainingError(f"Another training is writing to {out}. Wait for it, or choose another --out.") from error
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise TrainingError(
            f"The disk of {out}.run, where the checkpoints are, or of {out} is full ({error}). Free some space, and "
            "continue with --resume."
        ) from error
    finally:
        with suppress(OSError):  # on Windows, it cannot be deleted while it is locked
            path.unlink(missing_ok=True)
        lock.release()


def refuse_taken(out: Path, force: bool) -> None:
    """Raise ``TrainingError`` if ``out`` holds anything but the result of a training, or that and no ``force``."""
    if out.exists() and not out.is_dir():
        raise TrainingError(f"{out} is not a folder. Choose another --out.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / REPORT).is_file():
        raise TrainingError(f"{out} is not empty, and not the result of a training. Choose another --out.")
    if not force:
        raise TrainingError(
            f"{out} already contains a trained model. Choose another --out, or replace it with --force."
        )


def write_report(folder: Path, report: Any) -> None:
    """Write a report, a dataclass, to a model folder."""
    (folder / REPORT).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that training depends on."""
    return {"python": platform.python_version(), **environment.versions(_PACKAGES)}
