"""``jcv2 quantize`` and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quantize(
    model: Annotated[str, typer.Argument(help="A model, by name or folder.")],
    sources: Annotated[
        list[str], typer.Argument(help="Texts like those to be encoded: files and folders, as for jcv2 index.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; it must be new, or empty.")],
    samples: Annotated[int, typer.Option(min=10, help="Passages to calibrate on, drawn from all.")] = 100,
    chunk_tokens: Annotated[int, typer.Option(min=1, help="Largest passage, in tokens, as for jcv2 index.")] = 200,
) -> None:
    """Make a model that runs in eight bits on a CPU, beside its float weights.

    Use it by its folder: jcv2 index docs --model FOLDER. A collection made with either is searched with either.
    """
    from jcv2_plugin.cli.quantizing import run_quantize

    run_quantize(model, sources, out, samples=samples, chunk_tokens=chunk_tokens)
