"""Options shared by studies, as types for typer, and helpers to parse them.

Nothing heavy is imported here, so that ``--help`` is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="The folder for NAME.json, NAME.html and NAME.svg; made if need be.")]
Model = Annotated[str, typer.Option(help="A model by name or folder.")]
Data = Annotated[
    Path, typer.Option(envvar="JCV2_DATA", show_envvar=True, help="The folder that holds the sets, in BEIR layout.")
]
Sets = Annotated[str, typer.Option(help="Sets by the names of their folders, with commas between.", metavar="A,B")]
Queries = Annotated[int, typer.Option(min=2, help="At most so many queries of a set, drawn anew by each seed.")]
Documents = Annotated[
    int | None,
    typer.Option(min=1, help="Search so many documents: those judged and others drawn by the seed; all if not given."),
]
Seeds = Annotated[int, typer.Option(min=1, help="How many draws; each is measured.")]
Split = Annotated[str, typer.Option(help="Which qrels.")]
DocumentLength = Annotated[int | None, typer.Option(help="The model's window, in tokens.")]
Dtype = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16 or float16; the checkpoint's on a GPU, else float32, if not given."),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is by default.")]
Force = Annotated[bool, typer.Option("--force", help="Throw away what was measured before and start anew.")]

DATA = Path("../shared/data")
DTYPES = ("float32", "bfloat16", "float16")


def listed(text: str) -> tuple[str, ...]:
    """Split a comma-separated option, dropping duplicates."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def number(text: str, option: str) -> int:
    """Parse a positive integer.

    Raises:
        typer.BadParameter: If the text is not a positive integer.
    """
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a positive whole number.", param_hint=option)
    return int(text)
