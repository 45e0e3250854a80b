"""What all peers get: docstrings of the standard library, and ``mini`` made up like the real model.

Docstrings are found everywhere, are real prose, and come in lengths as mixed as documents do. The checkpoint has what
jina-colbert-v2 has: markers, queries padded to 32 with attended [MASK] tokens, a window, a skip list.
"""

from __future__ import annotations

import ast
import json
import sysconfig
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file

from jcv2_plugin import JinaColbertEncoder

MARKERS = {"query": "[unused0]", "document": "[unused1]"}
QUERY_LENGTH = 32
LONG = 2048
LENGTHS = {"short": 0, "100 tokens": 100, "2,000 tokens": 2000}
"""Kinds of documents, by the least number of tokens: docstrings as they are, or several put together."""
_POSITIONS = "embeddings.position_embeddings.weight"
_NOT_PROSE = {"test", "tests", "idlelib", "site-packages"}


def docstrings() -> list[str]:
    """All of the standard library, in an order that is random but the same everywhere.

    Found in the source, so that nothing is imported; which there are depends on Python's version.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found: set[str] = set()
    for file in sorted(root.rglob("*.py")):
        if _NOT_PROSE.isdisjoint(file.relative_to(root).parts):
            found.update(_docstrings(file))
    return sorted(found, key=lambda text: zlib.crc32(text.encode()))


def _docstrings(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # lib2to3 keeps samples of Python 2
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = (ast.get_docstring(node) or "").strip()
            if text:
                yield text


def documents(kind: str, number: int, tokens: Callable[[str], int], source: list[str]) -> list[str]:
    """``number`` texts of a kind of :data:`LENGTHS`, each different, made of ``source`` texts.

    Raises:
        ValueError: There is not enough text for that.
    """
    if LENGTHS[kind] == 0:
        return source[:number]
    made: list[str] = []
    parts: list[str] = []
    length = 0
    for text in source:
        parts.append(text)
        length += tokens(text)
        if length >= LENGTHS[kind]:
            made.append("\n\n".join(parts))
            parts, length = [], 0
        if len(made) == number:
            return made
    raise ValueError(f"There is text for {len(made)} documents of {kind} each only, not for {number}.")


def queries(number: int, source: list[str]) -> list[str]:
    """Summary lines of docstrings, as questions are short; those of the last texts, which are in no small set."""
    lines = dict.fromkeys(text.splitlines()[0].strip() for text in reversed(source))
    return [line for line in lines if 20 <= len(line) <= 120][:number]


def checkpoint(folder: Path, dim: int, window: int) -> Path:
    """``mini`` with markers, expansion and skip list, in the layout that all peers read; made once.

    A window over the backbone's 512 positions repeats its table of positions: what such a model finds is worth
    nothing, what it costs is what a model of that window costs.
    """
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=dim, device="cpu")
    path = folder / f"mini-{encoder.head_fingerprint(dim)[:8]}-{dim}-{window}"
    if path.exists():
        return path
    staging = folder / f".{path.name}"
    encoder.skiplist = "pieces"
    encoder.export(staging, dim)
    settings_file = staging / "config_sentence_transformers.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    settings.update(
        query_prefix=MARKERS["query"],
        document_prefix=MARKERS["document"],
        prompts={role: f"{marker} " for role, marker in MARKERS.items()},
        query_length=QUERY_LENGTH,
        document_length=window,
        do_query_expansion=True,
        attend_to_expansion_tokens=True,
    )
    settings_file.write_text(json.dumps(settings, indent=2), encoding="utf-8")
    if window > encoder.max_document_length:
        _stretch(staging, window)
    staging.rename(path)
    return path


def _stretch(folder: Path, window: int) -> None:
    weights = load_file(folder / "model.safetensors")
    table = weights[_POSITIONS]
    weights[_POSITIONS] = table.repeat(-(-window // len(table)), 1)[:window].contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for name, keys in {
        "config.json": ["max_position_embeddings"],
        "sentence_bert_config.json": ["max_seq_length"],
        "tokenizer_config.json": ["model_max_length"],
    }.items():
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        settings.update(dict.fromkeys(keys, window))
        (folder / name).write_text(json.dumps(settings, indent=2), encoding="utf-8")
