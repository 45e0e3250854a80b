"""100,000 real passages of $JCV2_DATA with their token vectors, encoded once and kept in build/large.

Every corpus of the retrieval sets, then the passages of the training data, then raw text in paragraphs; each text once.
Passages are truncated to 180 tokens, ColBERT's usual length. The vectors are kept as float16, in parts, so an
interrupted run goes on where it was.

    python benchmarks/large_texts.py --documents 100000
"""

from __future__ import annotations

import argparse
import json
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from encoded import DATA, ENGLISH, ROOT, say
from numpy.typing import NDArray

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset

CACHE = ROOT / "build" / "large"
DIM = 128
LENGTH = 180
_PART = 2_500
_PARAGRAPH = 900  # characters
_SHORTEST = 80


def texts() -> Iterator[str]:
    """All passages, each once: corpora (the English ones first), training passages, raw text (English first)."""
    seen: set[str] = set()
    for text in _all_texts():
        if len(text) >= _SHORTEST and text not in seen:
            seen.add(text)
            yield text


def _all_texts() -> Iterator[str]:
    names = sorted((one.parent.name for one in DATA.glob("*/corpus.jsonl")), key=lambda name: name not in ENGLISH)
    for name in names:
        yield from (document.text for document in BeirDataset.read(DATA / name).documents())
    for name in ("pairs", "triplets"):
        with lzma.open(DATA / "train" / f"{name}.jsonl.xz", "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield from (row["positive"], *row.get("negatives", ()))
    for file in sorted((DATA / "rawtext").glob("*.txt.xz"), key=lambda file: file.name != "en.txt.xz"):
        with lzma.open(file, "rt", encoding="utf-8") as lines:
            yield from paragraphs(lines)


def paragraphs(lines: Iterator[str]) -> Iterator[str]:
    """Join short lines and cut long ones, at words."""
    words: list[str] = []
    length = 0
    for word in (word for line in lines for word in line.split()):
        words.append(word)
        length += len(word) + 1
        if length >= _PARAGRAPH:
            yield " ".join(words)
            words, length = [], 0


@dataclass
class LargeCorpus:
    """Passages with their vectors.

    Attributes:
        texts: The passages.
        vectors: Of each, float16 of shape ``(tokens, dim)``, mapped from files.
        queries: Real queries of the English sets.
        query_vectors: Of each.
    """

    texts: list[str]
    vectors: list[NDArray[np.float16]]
    queries: list[str]
    query_vectors: list[NDArray[np.float32]]

    def first(self, count: int) -> LargeCorpus:
        """The same queries with the first passages only."""
        return LargeCorpus(self.texts[:count], self.vectors[:count], self.queries, self.query_vectors)


def read_large(count: int, queries: int, model: str = "mini") -> LargeCorpus:
    """Read the passages and queries, and encode what has not been encoded."""
    chosen = list(islice(texts(), -(-count // _PART) * _PART))  # whole parts, which any count shares
    if len(chosen) < count:
        say(f"There are only {len(chosen):,} passages in {DATA}.")
    encoder = JinaColbertEncoder.from_pretrained(model, device="cpu", document_length=LENGTH)
    folder = CACHE / f"{model}-{encoder.head_fingerprint(DIM)}-{DIM}"
    folder.mkdir(parents=True, exist_ok=True)
    vectors = [
        matrix
        for start in range(0, len(chosen), _PART)
        for matrix in _part(folder / f"{start:07d}.npy", encoder, chosen[start : start + _PART])
    ]
    asked = _queries(queries)
    return LargeCorpus(chosen[:count], vectors[:count], asked, list(encoder.query_vectors(asked, DIM)))


def _part(file: Path, encoder: JinaColbertEncoder, part: Sequence[str]) -> list[NDArray[np.float16]]:
    lengths = file.with_suffix(".json")
    if not lengths.exists() or len(json.loads(lengths.read_text())) != len(part):
        say(f"{file.name}: encoding {len(part):,} passages, once")
        encoded = encoder.document_vectors(list(part), DIM)
        np.save(file, np.concatenate(encoded).astype(np.float16))
        lengths.write_text(json.dumps([len(one) for one in encoded]))
    flat: NDArray[np.float16] = np.load(file, mmap_mode="r")
    return np.split(flat, np.cumsum(json.loads(lengths.read_text()))[:-1])


def _queries(count: int) -> list[str]:
    """As many queries of each English set, evenly spaced."""
    each = -(-count // len(ENGLISH))
    found: list[str] = []
    for name in ENGLISH:
        asked = list(BeirDataset.read(DATA / name).queries.values())
        found += asked[:: max(1, len(asked) // each)][:each]
    return found[:count]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    args = parser.parse_args()
    corpus = read_large(args.documents, args.queries)
    say(f"{len(corpus.texts):,} passages, {sum(map(len, corpus.vectors)) / len(corpus.vectors):.0f} tokens each")
