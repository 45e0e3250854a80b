"""``jcv2 quantize``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from jcv2_plugin.collection.sources import PassageReader, SourceError, SourceFile, find_files
from jcv2_plugin.console import quiet_libraries, remark
from jcv2_plugin.encoder.int8 import FOLDER
from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.encoder.quantization import quantize, require_packages
from jcv2_plugin.files import check_new_folder, new_folder


def run_quantize(model: str, sources: Sequence[str], out: Path, *, samples: int, chunk_tokens: int) -> None:
    """Calibrate a model on the passages of files, and write it to a new folder."""
    # Before anything that takes time.
    check_new_folder(out)
    require_packages()
    files = find_files(sources)
    quiet_libraries()
    start = time.perf_counter()
    encoder = JinaColbertEncoder.from_pretrained(model, device="cpu")
    reader = PassageReader(encoder, chunk_tokens)
    made = quantize(encoder, _texts(reader, files), samples=samples)
    with new_folder(out) as folder:
        # No card: sentence-transformers' would encode examples of its own, and remark on them.
        made.save_pretrained(str(folder), create_model_card=False)
    size = sum(file.stat().st_size for file in (out / FOLDER).iterdir()) / 1e6
    seconds = time.perf_counter() - start
    remark(f"{out}: {size:,.1f} MB in eight bits beside the float weights, in {seconds:.0f} s. Use it by --model {out}")


def _texts(reader: PassageReader, files: Sequence[SourceFile]) -> Iterator[str]:
    for file in files:
        try:
            documents = reader.read(file)
        except SourceError as error:
            remark(f"skipped: {error}")
            continue
        for document in documents:
            yield document.text
