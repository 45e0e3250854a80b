"""Training requests. Their fields are the options of the commands ``train``, ``pairs`` and ``triplets``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jcv2_trainer.mining.resumable import file_identity, model_identity
from jcv2_trainer.recipes.settings import TrainingRecipe

Stage = Literal["train", "pairs", "triplets"]


@dataclass(frozen=True)
class Request:
    """What to train: the files, the model, and how to treat an earlier run. The recipe is in ``settings``.

    ``stage`` says which data is required: ``"triplets"`` needs negatives, ``"pairs"`` and ``"train"`` need nothing.
    Checkpoints are in ``<out>.run`` during training.
    """

    data: Annotated[
        list[Path],
        typer.Argument(
            help="Files of rows: .jsonl (.gz, .xz, .bz2, .zst), .parquet, or a folder saved by datasets. "
            "See: jcv2-finetune check."
        ),
    ]
    model: Annotated[str, typer.Option(help="Name or folder of the model to start from.")]
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")]
    settings: TrainingRecipe
    stage: Stage = "train"
    dev: Annotated[
        Path | None, typer.Option(help="Dev set: a file like the data, or a BEIR folder. Else rows are held out.")
    ] = None
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip and count rows with errors, instead of stopping at the first.")
    ] = False
    languages: Annotated[
        list[str] | None, typer.Option("--lang", help="Use only rows in this language. May be repeated.")
    ] = None
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint.")] = False
    force: Annotated[bool, typer.Option("--force", help="Replace a trained model, and restart an unfinished run.")] = (
        False
    )
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ... Defaults to the best one available.")] = None
    revision: Annotated[str | None, typer.Option(help="Hub revision of the model.")] = None
    attn_implementation: Annotated[str | None, typer.Option(help="sdpa, eager or flash_attention_2 (with --bf16).")] = (
        None
    )

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same to resume a run. All files are read."""
        return {
            "stage": self.stage,
            **model_identity(self.model),
            "revision": self.revision,
            "data files": [one for path in self.data for one in file_identity(path)],
            "dev files": file_identity(self.dev),
            "lang": self.languages or None,
            "settings": self.settings.model_dump(),
        }
