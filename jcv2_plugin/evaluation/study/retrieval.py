"""Shared by retrieval studies: sampling of queries and documents, encoding, and exact MaxSim search."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.util.similarity import maxsim
from torch import Tensor

from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import MRR, NDCG, RECALL, Metrics, run_of
from jcv2_plugin.evaluation.study.base import Cell, Result, StudyError, Value
from jcv2_plugin.evaluation.study.intervals import Samples, interval
from jcv2_plugin.evaluation.study.options import DTYPES

DEPTH = 100
_ENCODED_AT_A_TIME = 256
_SCORED_AT_A_TIME = 32  # queries, and documents, so that all token similarities fit in the CPU's cache
_SMALL_CORPUS = 1000


def load_encoder(
    model: str,
    *,
    dims: int | Sequence[int] | None,
    device: str | None,
    document_length: int | None,
    dtype: str | None = None,
) -> JinaColbertEncoder:
    """Load an encoder by name or folder, without progress bars and warnings on the terminal.

    Raises:
        InvalidOptionError: If the dtype is unknown.
    """
    from jcv2_plugin.console import quiet_libraries

    if dtype is not None and dtype not in DTYPES:
        raise InvalidOptionError(f"dtype must be one of {DTYPES}, got {dtype!r}.")
    quiet_libraries()
    return JinaColbertEncoder.from_pretrained(
        model, dims=dims, device=device, document_length=document_length, dtype=dtype and getattr(torch, dtype)
    )


def model_settings(encoder: JinaColbertEncoder, dims: Sequence[int]) -> dict[str, Any]:
    """Return the description of a model for a study's settings."""
    return {
        "model": encoder.name,
        "revision": encoder.revision,
        "fingerprint": {str(dim): encoder.head_fingerprint(dim) for dim in dims},
        "document_length": encoder.document_length,
        "query_length": encoder.query_length,
        "skiplist": encoder.skiplist,
        "dtype": str(next(encoder.parameters()).dtype).removeprefix("torch."),
    }


@dataclass(frozen=True)
class Sampling:
    """Which test sets to search, and how much of each.

    Attributes:
        data: Folder that contains the test sets.
        sets: Names of folders in it, in BEIR layout.
        split: Split of the judgments.
        queries: Maximum number of queries per draw.
        documents: Number of documents to search: all that are judged for the draw's queries, plus random others. None
            means all.
        seeds: Number of draws.
    """

    data: Path
    sets: tuple[str, ...]
    split: str
    queries: int
    documents: int | None
    seeds: int

    @property
    def settings(self) -> dict[str, Any]:
        """Settings besides a cell's set and seed that affect the results."""
        return {"split": self.split, "queries": self.queries, "documents": self.documents}

    def draws(self) -> Iterator[dict[str, Value]]:
        """Yield ``set`` and ``seed`` of each draw. A set that is used whole has only one draw.

        Raises:
            StudyError: If there are no sets.
            BeirFormatError: If a set cannot be read.
        """
        if not self.sets:
            raise StudyError("There are no sets to search. Name some with --sets.")
        for name in self.sets:
            whole = _read(self.data / name, self.split)
            drawn = len(whole.queries) > self.queries or not self._takes_all_documents(whole)
            for seed in range(self.seeds if drawn else 1):
                yield {"set": name, "seed": seed}

    def dataset(self, parameters: Mapping[str, Value]) -> BeirDataset:
        """Return the part of a test set drawn for a cell's ``set`` and ``seed``. The result is deterministic."""
        whole = _read(self.data / str(parameters["set"]), self.split)
        rng = np.random.default_rng(int(parameters["seed"] or 0))
        queries = dict(whole.queries)
        if len(queries) > self.queries:
            ids = list(queries)
            chosen = sorted(rng.choice(len(ids), self.queries, replace=False).tolist())
            queries = {ids[index]: queries[ids[index]] for index in chosen}
        qrels = {query: whole.qrels[query] for query in queries}
        corpus = whole.corpus
        if not self._takes_all_documents(whole):
            corpus = _some_documents(whole, qrels, int(self.documents or 0), rng)
        return replace(whole, queries=queries, qrels=qrels, corpus=corpus)

    def languages(self, parameters: Mapping[str, Value], dataset: BeirDataset) -> dict[str, str]:
        """Return the language of each query with a ``lang``: ``de``, or ``de->en`` if the documents are in English."""
        documents = (dataset.language or "").rpartition("->")[2]
        documents = "mixed" if "+" in documents else documents
        known = _query_languages(self.data / str(parameters["set"]) / "queries.jsonl")
        own = {query: known[query] for query in dataset.queries if query in known}
        return {query: one if documents in ("", one) else f"{one}->{documents}" for query, one in own.items()}

    def corpus_key(self, parameters: Mapping[str, Value]) -> tuple[Value, ...]:
        """Return a key that is equal for cells that search the same documents."""
        whole = _read(self.data / str(parameters["set"]), self.split)
        return (parameters["set"], None if self._takes_all_documents(whole) else parameters["seed"])

    def _takes_all_documents(self, dataset: BeirDataset) -> bool:
        return self.documents is None or self.documents >= len(dataset.corpus)


@lru_cache(maxsize=32)
def _read(folder: Path, split: str) -> BeirDataset:
    return BeirDataset.read(folder, split=split)


@lru_cache(maxsize=32)
def _query_languages(file: Path) -> dict[str, str]:
    with file.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    return {row["_id"]: str(row["lang"]) for row in rows if row.get("lang")}


def _some_documents(
    whole: BeirDataset, qrels: Mapping[str, Mapping[str, int]], number: int, rng: np.random.Generator
) -> dict[str, Any]:
    judged = {document for judgments in qrels.values() for document in judgments}
    others = [document for document in whole.corpus if document not in judged]
    more = max(0, number - len(judged))
    kept = judged | {others[index] for index in rng.choice(len(others), min(more, len(others)), replace=False)}
    return {own_id: passage for own_id, passage in whole.corpus.items() if own_id in kept}


Vectors = list[Tensor]
"""For each text, a tensor of shape ``(tokens, dim)``."""


class EncodedSets:
    """Encode the texts of a draw at several dimensions in one pass, and cache them for the next cells.

    Only one draw is cached at a time. Documents are kept in float16, as ``jcv2 eval`` stores them.

    Args:
        encoder: Model to encode with.
        sampling: Test sets and draws.
        dims: Dimensions to encode at.
    """

    def __init__(self, encoder: JinaColbertEncoder, sampling: Sampling, dims: Sequence[int]) -> None:
        self.encoder = encoder
        self.sampling = sampling
        self.dims = tuple(dims)
        self._key: tuple[Value, ...] | None = None
        self._documents: dict[int, Vectors] = {}
        self._draw: tuple[Value, ...] | None = None
        self._queries: dict[int, Vectors] = {}

    def documents(self, parameters: Mapping[str, Value], dataset: BeirDataset) -> dict[int, Vectors]:
        """Return the document vectors of a cell's draw by dimension, in corpus order."""
        key = self.sampling.corpus_key(parameters)
        if key != self._key:
            self._key, self._documents = None, {dim: [] for dim in self.dims}
            texts = [passage.full_text for passage in dataset.corpus.values()]
            # Encode in parts, because all vectors in float32 would take twice the memory.
            for start in range(0, len(texts), _ENCODED_AT_A_TIME):
                part = texts[start : start + _ENCODED_AT_A_TIME]
                encoded = self.encoder.encode_document(part, dim=self.dims, show_progress_bar=False)
                for dim in self.dims:
                    self._documents[dim].extend(one.half() for one in encoded[dim])
            self._key = key
        return self._documents

    def queries(self, parameters: Mapping[str, Value], dataset: BeirDataset) -> dict[int, Vectors]:
        """Return the query vectors of a cell's draw by dimension, in the draw's order."""
        draw = (parameters["set"], parameters["seed"])
        if draw != self._draw:
            texts = list(dataset.queries.values())
            self._queries = self.encoder.encode_query(texts, dim=self.dims, show_progress_bar=False)
            self._draw = draw
        return self._queries


def exact_run(
    dataset: BeirDataset, queries: Sequence[Tensor], documents: Sequence[Tensor]
) -> dict[str, dict[str, float]]:
    """Rank all documents by MaxSim and return the top 100 for each query.

    Args:
        dataset: Test set with the ids of the queries and documents.
        queries: Query vectors in the order of the test set, each of shape ``(tokens, dim)``.
        documents: Document vectors in the order of the test set, each of shape ``(tokens, dim)``. float16 vectors are
            scored in the dtype of the queries.
    """
    query_ids, document_ids = list(dataset.queries), list(dataset.corpus)
    scores = torch.empty(len(query_ids), len(document_ids))
    # Score texts of similar length together, because each block is padded to its longest text.
    for columns in _by_length(documents):
        part = [documents[column].to(queries[0].device, queries[0].dtype) for column in columns]
        for rows in _by_length(queries):
            block = maxsim([queries[row] for row in rows], part).cpu()
            scores[torch.tensor(rows)[:, None], torch.tensor(columns)] = block
    return run_of(scores, query_ids, document_ids)


def _by_length(vectors: Sequence[Tensor]) -> Iterator[list[int]]:
    order = sorted(range(len(vectors)), key=lambda index: len(vectors[index]))
    for start in range(0, len(order), _SCORED_AT_A_TIME):
        yield order[start : start + _SCORED_AT_A_TIME]


def quality(metrics: Metrics) -> tuple[dict[str, Value], dict[str, dict[str, float]]]:
    """Return a run's means as a cell's values, and nDCG@10 and recall@100 of each query as its samples."""
    samples = {
        measure: {query: values[measure] for query, values in metrics.per_query.items()} for measure in (NDCG, RECALL)
    }
    return {NDCG: metrics.ndcg_at_10, RECALL: metrics.recall_at_100, MRR: metrics.mrr_at_10}, samples


def sizes(dataset: BeirDataset) -> dict[str, Value]:
    """Return language and sizes of a draw, as a cell's values."""
    return {"language": dataset.language, "documents": len(dataset.corpus), "queries": len(dataset.queries)}


def cells_of(sampling: Sampling, name: str, values: Sequence[Value]) -> list[Cell]:
    """Return a cell for each draw and each value of one more parameter."""
    return [Cell({**draw, name: value}) for draw in sampling.draws() for value in values]


def having(results: Sequence[Result], **parameters: Value) -> list[Result]:
    """Return the results of the cells with these parameters."""
    return [one for one in results if all(one.parameters.get(name) == value for name, value in parameters.items())]


def samples_of(results: Sequence[Result], measure: str, **parameters: Value) -> list[Samples]:
    """Return the samples of a measure for each draw of the cells with these parameters."""
    return list(draws_of(results, measure, **parameters).values())


def draws_of(results: Sequence[Result], measure: str, **parameters: Value) -> dict[tuple[Value, Value], Samples]:
    """Return :func:`samples_of` by set (if any) and seed, to pair draws of cells that differ in another parameter."""
    found = having(results, **parameters)
    return {(one.parameters.get("set"), one.parameters["seed"]): one.samples[measure] for one in found}


def paired(results: Sequence[Result], measure: str, one: Mapping[str, Value], other: Mapping[str, Value]) -> list[Any]:
    """Return pairs of samples of the same draw, for :func:`jcv2_plugin.evaluation.study.intervals.difference`."""
    first, second = draws_of(results, measure, **one), draws_of(results, measure, **other)
    return [(first[draw], second[draw]) for draw in first if draw in second]


def split(results: Sequence[Result], label: Callable[[Result, str], str | None]) -> dict[str, list[Result]]:
    """Split the results by a label of each query. Queries with the label None are dropped.

    The set becomes part of a query's id, so that the queries of several sets can be pooled.
    """
    parts: dict[str, list[Result]] = {}
    for one in results:
        labels = {query: label(one, query) for query in one.samples[NDCG]}
        for name in dict.fromkeys(labels.values()):
            if name is None:
                continue
            samples = {
                measure: {
                    f"{one.parameters['set']} {query}": value
                    for query, value in values.items()
                    if labels.get(query) == name
                }
                for measure, values in one.samples.items()
            }
            parts.setdefault(name, []).append(Result(one.parameters, one.values, samples))
    return parts


def by_set(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Split the results by test set; see :func:`split`."""
    return split(results, lambda one, _: str(one.parameters["set"]))


def by_language(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Split the results by the language of each query, or of its set if the query has none; see :func:`split`."""
    return split(results, lambda one, query: one.languages.get(query, str(one.values["language"] or "not said")))


def by_bucket(results: Sequence[Result], lengths: str, ends: Sequence[int]) -> dict[str, list[Result]]:
    """Split the results by a length sample into buckets with these upper ends, shortest first; see :func:`split`."""

    def label(one: Result, query: str) -> str | None:
        if (length := one.samples[lengths].get(query)) is None:
            return None
        index = bisect_left(ends, length)
        low = ends[index - 1] + 1 if index else 1
        return f"{low}–{ends[index]}" if index < len(ends) else f"{low} and more"

    parts = split(results, label)
    return {name: parts[name] for name in sorted(parts, key=lambda name: int(re.split(r"\D", name)[0]))}


def number_of_queries(results: Sequence[Result]) -> int:
    """Return the number of distinct queries in a part of :func:`split`."""
    return len({query for one in results for query in one.samples[NDCG]})


def distinct(results: Sequence[Result], name: str) -> list[Any]:
    """Return the distinct values of a parameter, in the order they were measured."""
    return list(dict.fromkeys(one.parameters[name] for one in results))


def whole_draws(results: Sequence[Result], name: str, values: Sequence[Value]) -> list[Result]:
    """Return the results of draws in which all these values of a parameter were measured and can be compared.

    Raises:
        StudyError: If there is no such draw yet.
    """
    measured: dict[tuple[Value, Value], set[Value]] = {}
    for one in results:
        measured.setdefault((one.parameters["set"], one.parameters["seed"]), set()).add(one.parameters[name])
    whole = [one for one in results if measured[one.parameters["set"], one.parameters["seed"]] >= set(values)]
    if not whole:
        raise StudyError(f"No draw has been measured with every {name} yet, so there is nothing to report.")
    return whole


def sample_limits(results: Sequence[Result], settings: Mapping[str, Any]) -> list[str]:
    """Return sentences for a report on what draws of this size can show."""
    sets = distinct(results, "set")
    drawn = {one.parameters["set"]: one.values for one in results}
    seeds = len(distinct(results, "seed"))
    counts = ", ".join(f"{name} {drawn[name]['queries']:,} in {drawn[name]['documents']:,}" for name in sets)
    lines = [f"Queries, and documents searched, in a draw: {counts}."]
    if settings["documents"] is not None:
        lines.append(
            f"At most about {settings['documents']:,} documents are searched, where a set has more: the relevant ones "
            "are all there and most others are not, so figures are higher than published ones of the whole set. "
            "Differences between rows of a table are what to read."
        )
    if (fewest := min(int(values["documents"] or 0) for values in drawn.values())) < _SMALL_CORPUS:
        lines.append(
            f"The smallest corpus searched has {fewest:,} documents. Recall@100 in so few is near 1 for any "
            "system (and is 1 by construction in a hundred or fewer where every document gets a score): read nDCG@10."
        )
    if seeds > 1:
        lines.append(f"Up to {seeds} draws of a set (seeds 0 to {seeds - 1}); a set that a draw takes whole has one.")
    halves = sorted(
        (own.high - own.low) / 2
        for others in {tuple(sorted((k, v) for k, v in one.parameters.items() if k != "seed")) for one in results}
        for own in [interval(samples_of(results, NDCG, **dict(others)))]
    )
    lines.append(
        f"A figure of one set is known to within ±{halves[0]:.3f} to ±{halves[-1]:.3f} nDCG@10. Paired differences, of "
        "the same queries, are known more closely; their intervals say how closely. One that holds 0 is no difference "
        "shown, which is not to say that there is none."
    )
    lines.append("Intervals are about other queries of the same kind. They say nothing of other sets or domains.")
    return lines
