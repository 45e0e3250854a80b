"""``jcv2 quantize``: make an int8 model for CPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from jcv2_plugin.collection.sources import PassageReader, SourceError, SourceFile, find_files
from jcv2_plugin.console import quiet_libraries, remark
from jcv2_plugin.files import check_new_folder, new_folder
from jcv2_plugin.lazy import require_packages


def quantize(
    model: Annotated[str, typer.Argument(help="Name or folder of the model.")],
    sources: Annotated[
        list[str], typer.Argument(help="Files and folders with texts like those to encode, as for jcv2 index.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write. It must be new or empty.")],
    samples: Annotated[int, typer.Option(min=10, help="Number of passages to calibrate on.")] = 100,
    chunk_tokens: Annotated[int, typer.Option(min=1, help="Maximum size of a passage, in tokens.")] = 200,
) -> None:
    """Create an int8 version of a model, for CPUs.

    The folder also keeps the float weights. Use it as a model: jcv2 index docs --model FOLDER. A collection made with
    the original model can be searched with the new one, and the other way round.
    """
    check_new_folder(out)
    from jcv2_plugin.encoder import quantization
    from jcv2_plugin.encoder.int8 import FOLDER
    from jcv2_plugin.encoder.model import JinaColbertEncoder

    require_packages("Quantising", quantization.PACKAGES, "int8")
    files = find_files(sources)
    quiet_libraries()
    start = time.perf_counter()
    encoder = JinaColbertEncoder.from_pretrained(model, device="cpu")
    reader = PassageReader(encoder, chunk_tokens)
    made = quantization.quantize(encoder, _texts(reader, files), samples=samples)
    with new_folder(out) as folder:
        # No model card, because sentence-transformers would encode examples for it and print warnings.
        made.save_pretrained(str(folder), create_model_card=False)
    size = sum(file.stat().st_size for file in (out / FOLDER).iterdir()) / 1e6
    seconds = time.perf_counter() - start
    remark(
        f"{out}: {size:,.1f} MB of int8 weights beside the float weights, in {seconds:.0f} s. Use it with --model {out}"
    )


def _texts(reader: PassageReader, files: Sequence[SourceFile]) -> Iterator[str]:
    for file in files:
        try:
            documents = reader.read(file)
        except SourceError as error:
            remark(f"skipped: {error}")
            continue
        for document in documents:
            yield document.text
