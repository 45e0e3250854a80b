"""Storing and searching beside Qdrant's local mode and fast-plaid; and the whole way from texts to an index."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peer_texts
from encoded import UNION, read_set, say
from numpy.typing import NDArray
from peer_bench import OURS, Bench
from peer_environments import PeerUnavailableError
from peer_measures import ratios, spread, turns, write_json
from peer_process import Worker
from worker import Matrix, read_vectors, write_vectors

from jcv2_plugin import JinaColbertEncoder

K = 10
QUERIES_A_TURN = 5
SEARCHES = 100
"""For the figure of storing, opening and searching together."""


@dataclass(frozen=True)
class Variant:
    """An engine with options of its own, and how hard it may search; None is its default.

    Attributes:
        name: As reported.
        worker: Of :data:`peer_environments.PEERS`.
        options: For its ``store``.
        efforts: For its ``search``.
        most: Documents that it is given at most: beyond, it takes more time or memory than this comparison has.
    """

    name: str
    worker: str
    options: dict[str, Any]
    efforts: tuple[Any, ...] = (None,)
    most: int | None = None


CANDIDATES = (None, 20, 50, 100, 200, 500, "exact")
PROBES = (
    {"n_ivf_probe": 2, "n_full_scores": 256},
    {"n_ivf_probe": 4, "n_full_scores": 1024},
    None,
    {"n_ivf_probe": 32, "n_full_scores": 8192},
)
VARIANTS = (
    Variant(OURS, OURS, {}, CANDIDATES),
    Variant(f"{OURS}, turbo4", OURS, {"storage": "turbo4"}, CANDIDATES),
    Variant("qdrant-local", "qdrant-local", {}),
    # At 20,000 the system ended it for want of memory, with 23 GiB; it had grown its file to 2 GB at 10,000.
    Variant("qdrant-local, on disk", "qdrant-local", {"on_disk": True}, most=10_000),
    # Took ten minutes to store 10,000, where ours took half a minute.
    Variant("fast-plaid", "fast-plaid", {}, PROBES, most=10_000),
)
WAYS = (
    (OURS,),
    ("sentence-transformers", "qdrant-local"),
    ("fastembed", "qdrant-local"),
    ("pylate", "fast-plaid"),
)
"""From texts to an index: alone, or an encoder and a store."""


@dataclass(frozen=True)
class StoringScale:
    """How much is stored and searched.

    Attributes:
        documents: Sizes of the collections. Over what docstrings there are, they are of the English sets of
            $JCV2_DATA.
        queries: Searches of each variant at each effort.
        ingested: Texts for the whole way.
        rounds: Of the whole way.
    """

    documents: tuple[int, ...]
    queries: int
    ingested: int
    rounds: int


@dataclass(frozen=True)
class Corpus:
    """Documents and queries with their vectors, in files for the workers."""

    texts: str
    vectors: Path
    queries: list[str]
    query_vectors: list[Matrix]
    about: dict[str, Any]


def store_and_search(bench: Bench, scale: StoringScale) -> list[dict[str, Any]]:
    """A row for each number of documents, variant and effort."""
    rows: list[dict[str, Any]] = []
    for size in scale.documents:
        corpus = make_corpus(bench, size, scale.queries)
        exact = exact_top(corpus.query_vectors, read_vectors(corpus.vectors), K)
        stored: dict[str, dict[str, Any]] = {}
        with bench.workers({variant.name: variant.worker for variant in VARIANTS}, bench.checkpoint()) as workers:
            for variant in VARIANTS:
                done = variant.name in workers and bench.attempt(
                    variant.name,
                    f"{size} documents",
                    lambda v=variant: _store(bench, workers[v.name], v, corpus),  # type: ignore[misc]  # noqa: B023
                )
                if done:
                    stored[variant.name] = done
                    say(f"{size} documents: {variant.name} stored in {done['clock']:.2f} s, {done['bytes']:,} bytes")
            kept = [variant for variant in VARIANTS if variant.name in stored]
            found = _search(bench, kept, workers, corpus)
        rows += [{**corpus.about, **row} for row in _rows(kept, stored, found, exact)]
    return rows


def _store(bench: Bench, worker: Worker, variant: Variant, corpus: Corpus) -> dict[str, Any]:
    if variant.most is not None and corpus.about["documents"] > variant.most:
        raise PeerUnavailableError(f"It is not given more than {variant.most:,} documents.")
    folder = bench.scratch / variant.name.replace(", ", "-")
    shutil.rmtree(folder, ignore_errors=True)
    return worker.ask(
        "store", vectors=str(corpus.vectors), texts=corpus.texts, folder=str(folder), options=variant.options
    )


def _search(
    bench: Bench, variants: Sequence[Variant], workers: dict[str, Worker], corpus: Corpus
) -> dict[tuple[str, str], dict[str, list[Any]]]:
    """Times and results of each query; the engines take turns every few queries."""
    runs = [(variant, effort) for variant in variants for effort in variant.efforts]
    found: dict[tuple[str, str], dict[str, list[Any]]] = {}
    starts = range(0, len(corpus.queries), QUERIES_A_TURN)
    vectors = bench.scratch / "query-part.npz"
    for start, order in zip(starts, turns(runs, len(starts)), strict=True):
        part = slice(start, start + QUERIES_A_TURN)
        texts = write_json(bench.scratch / "query-part.json", corpus.queries[part])
        write_vectors(vectors, corpus.query_vectors[part])
        parts = {
            (variant.name, str(effort)): workers[variant.name].ask(
                "search", vectors=str(vectors), texts=texts, k=K, effort=effort
            )
            for variant, effort in order
        }
        for key, answer in parts.items():
            for name, values in answer.items():
                found.setdefault(key, {}).setdefault(name, []).extend(values)
    return found


def _rows(
    variants: Sequence[Variant],
    stored: dict[str, dict[str, Any]],
    found: dict[tuple[str, str], dict[str, list[Any]]],
    exact: list[dict[int, float]],
) -> Iterator[dict[str, Any]]:
    ours, our_storing = _by_query(found[OURS, "None"]), stored[OURS]["clock"]
    together = _whole(stored[OURS], found[OURS, "None"])
    for variant in variants:
        for effort in variant.efforts:
            answers = found[variant.name, str(effort)]
            hits = [len(set(one) & set(best)) / len(best) for one, best in zip(answers["found"], exact, strict=True)]
            yield {
                "engine": variant.name,
                "effort": effort,
                "recall@10": statistics.fmean(hits),
                "milliseconds": spread([1000 * one for one in answers["clock"]]),
                "over_ours": ratios(_by_query(answers), ours),
                "store_seconds": stored[variant.name]["clock"],
                "store_over_ours": stored[variant.name]["clock"] / our_storing,
                "opening_seconds": stored[variant.name]["opening"],
                "whole_over_ours": _whole(stored[variant.name], answers) / together,
                "bytes": stored[variant.name]["bytes"],
                "peak_bytes": stored[variant.name]["peak_bytes"],
            }


def _whole(stored: dict[str, Any], answers: dict[str, list[Any]]) -> float:
    """Seconds of storing, opening and many searches."""
    seconds: float = stored["clock"] + stored["opening"] + SEARCHES * statistics.median(answers["clock"])
    return seconds


def _by_query(answers: dict[str, list[Any]]) -> list[dict[str, float]]:
    return [
        {"clock": clock, "processor": processor}
        for clock, processor in zip(answers["clock"], answers["processor"], strict=True)
    ]


def make_corpus(bench: Bench, size: int, queries: int) -> Corpus:
    """Documents with vectors: docstrings while there are so many, else the English sets of $JCV2_DATA.

    The model is ``mini`` as it is, without [MASK] tokens: it was not trained with them, and what they match is chance,
    which a first stage cannot foresee.
    """
    encoder = JinaColbertEncoder.from_pretrained("mini", dims=bench.dim, device="cpu")
    if size <= len(bench.source):
        texts, asked = bench.source[:size], peer_texts.queries(queries, bench.source)
        vectors, encoded = encoder.document_vectors(texts, bench.dim), encoder.query_vectors(asked, bench.dim)
        source = "docstrings"
    else:
        data = read_set(UNION, encoder, bench.dim, queries)
        step = max(1, len(data.queries) // queries)
        chosen = list(data.queries)[::step][:queries]
        asked, encoded = [data.queries[one] for one in chosen], [data.query_vectors[one] for one in chosen]
        data = data.first(size)
        texts, vectors = [document.text for document in data.documents], data.vectors
        source = "the English sets"
    file = bench.scratch / f"documents-{size}.npz"
    write_vectors(file, vectors)
    about = {"documents": len(texts), "source": source, "queries": len(asked), "vectors": sum(map(len, vectors))}
    return Corpus(write_json(bench.scratch / "documents.json", texts), file, asked, encoded, about)


def exact_top(queries: Sequence[Matrix], documents: Sequence[Matrix], k: int) -> list[dict[int, float]]:
    """For each query the documents of the largest MaxSim, best first: scores by position, plainly in float32."""
    flat = np.concatenate(documents)
    starts = np.cumsum([0, *(len(one) for one in documents[:-1])])
    best: list[dict[int, float]] = []
    for query in queries:
        similar: NDArray[np.float32] = flat @ query.T
        scores = np.maximum.reduceat(similar, starts, axis=0).sum(axis=1)
        best.append({int(index): float(scores[index]) for index in np.argsort(-scores, kind="stable")[:k]})
    return best


def ingest(bench: Bench, scale: StoringScale) -> list[dict[str, Any]]:
    """A row for each way of :data:`WAYS`: seconds from texts to an index that can be searched."""
    texts = write_json(bench.scratch / "texts.json", bench.source[: scale.ingested])
    with bench.workers({name: name for way in WAYS for name in way}, bench.checkpoint()) as workers:
        ways = [way for way in WAYS if set(way) <= set(workers)]
        times: dict[tuple[str, ...], list[dict[str, Any]]] = {way: [] for way in ways}
        for number, order in enumerate(turns(ways, scale.rounds + 1)):
            for way in order:
                measured = _go(bench, [workers[name] for name in way], texts)
                if number:  # the first is to warm up
                    times[way].append(measured)
    return [
        {
            "engine": " + ".join(way),
            "documents": scale.ingested,
            "documents_per_second": spread([scale.ingested / one["clock"] for one in measured]),
            "over_ours": ratios(measured, times[OURS,]),
            "bytes": measured[-1]["bytes"],
            "peak_bytes": max(one["peak_bytes"] for one in measured),
        }
        for way, measured in times.items()
    ]


def _go(bench: Bench, way: Sequence[Worker], texts: str) -> dict[str, Any]:
    folder = bench.scratch / "ingested"
    shutil.rmtree(folder, ignore_errors=True)
    if len(way) == 1:
        return way[0].ask("ingest", texts=texts, folder=str(folder))
    vectors = bench.scratch / "ingested.npz"
    encoded = way[0].ask("encode", texts=texts, role="document", save=str(vectors))
    stored = way[1].ask("store", vectors=str(vectors), texts=texts, folder=str(folder), options={})
    return {
        "clock": encoded["clock"] + stored["clock"],
        "processor": encoded["processor"] + stored["processor"],
        "bytes": stored["bytes"],
        "peak_bytes": max(encoded["peak_bytes"], stored["peak_bytes"]),
    }
