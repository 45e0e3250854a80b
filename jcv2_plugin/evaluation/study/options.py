"""Options shared by studies, as types for typer, and helpers to parse them.

Nothing heavy is imported here, so that ``--help`` is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Folder for NAME.json, NAME.html and NAME.svg. Created if it does not exist.")]
Model = Annotated[str, typer.Option(help="Name or folder of a model.")]
Data = Annotated[
    Path, typer.Option(envvar="JCV2_DATA", show_envvar=True, help="Folder that contains the test sets, in BEIR layout.")
]
Sets = Annotated[str, typer.Option(help="Test sets, by folder name, separated by commas.", metavar="A,B")]
Queries = Annotated[int, typer.Option(min=2, help="Maximum number of queries per set. Each seed draws its own.")]
Documents = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of documents to search: the judged ones, and others drawn at random. All by default."
    ),
]
Seeds = Annotated[int, typer.Option(min=1, help="Number of draws to measure.")]
Split = Annotated[str, typer.Option(help="Split of the judgments.")]
Dims = Annotated[str | None, typer.Option(help="Dimensions, separated by commas. All by default.", metavar="A,B")]
Dim = Annotated[int | None, typer.Option(help="Matryoshka dimension. The model's first by default.")]
DocumentLength = Annotated[int | None, typer.Option(help="Maximum tokens per document. The model's by default.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16. By default the checkpoint's on a GPU, float32 on a CPU."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... The best available by default.")]
Force = Annotated[bool, typer.Option("--force", help="Discard earlier results and start over.")]

STUDIES = "jcv2_plugin.studies"
"""Entry point group for the commands of studies that other packages provide."""
DATA = Path("../shared/data")
DTYPES = ("float32", "bfloat16", "float16")


def listed(text: str) -> tuple[str, ...]:
    """Split a comma-separated option, dropping duplicates."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Parse a comma-separated option of positive integers."""
    for one in listed(text):
        if not one.isdecimal() or int(one) < 1:
            raise typer.BadParameter(f"{one!r} is not a positive integer.", param_hint=option)
    return tuple(int(one) for one in listed(text))
