"""Shared by retrieval studies: sampling of queries and documents, encoding, exact MaxSim search, and statistics."""

from __future__ import annotations

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

from jcv2_plugin.console import quiet_libraries
from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.evaluation.beir import BeirDataset, without_own
from jcv2_plugin.evaluation.metrics import NDCG, RECALL, measure_run, run_of
from jcv2_plugin.evaluation.study.base import Cell, Interval, Samples, StudyError, Value
from jcv2_plugin.evaluation.study.intervals import mean_over_sets, subtract
from jcv2_plugin.evaluation.study.options import DTYPES
from jcv2_plugin.files import numbered_lines, parse_json

_ENCODED_AT_A_TIME = 256
_SCORED_AT_A_TIME = 32  # queries, and documents, so that all token similarities fit in the CPU's cache
_SMALL_CORPUS = 1000

Vectors = Sequence[Tensor]
"""For each text, a tensor of shape ``(tokens, dim)``."""
Run = dict[str, dict[str, float]]


def load_encoder(
    model: str,
    *,
    dims: int | Sequence[int] | None = None,
    device: str | None = None,
    document_length: int | None = None,
    dtype: str | None = None,
) -> JinaColbertEncoder:
    """Load an encoder by name or folder, without progress bars and warnings on the terminal."""
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
    """Which test sets (folders of ``data``, in BEIR layout) to search, and how much of each.

    A draw has at most ``queries``, and ``documents``: all that are judged for them, plus random others. None means all.
    There are ``seeds`` draws of a set, but one of a set that is used whole.
    """

    data: Path
    sets: Sequence[str]
    split: str = "test"
    queries: int = 200
    documents: int | None = None
    seeds: int = 3

    def cells(self, axis: str, values: Sequence[Value]) -> list[Cell]:
        """Return a cell for each draw (``set`` and ``seed``) and each value of one more parameter.

        Raises:
            StudyError: If there are no sets.
            BeirFormatError: If a set cannot be read.
        """
        if not self.sets:
            raise StudyError("There are no sets to search. Name some with --sets.")
        found = []
        for name in self.sets:
            whole = _read(self.data / name, self.split)
            drawn = len(whole.queries) > self.queries or not self._takes_all_documents(whole)
            for seed in range(self.seeds if drawn else 1):
                found += [Cell({"set": name, "seed": seed, axis: value}) for value in values]
        return found

    def dataset(self, parameters: Mapping[str, Value]) -> BeirDataset:
        """Return the part of a test set drawn for a cell's ``set`` and ``seed``. The result is deterministic."""
        whole = _read(self.data / str(parameters["set"]), self.split)
        rng = np.random.default_rng(int(parameters["seed"] or 0))
        ids = list(whole.queries)
        if len(ids) > self.queries:
            ids = [ids[index] for index in sorted(rng.choice(len(ids), self.queries, replace=False).tolist())]
        qrels = {query: whole.qrels[query] for query in ids}
        corpus = whole.corpus
        if not self._takes_all_documents(whole):
            kept = {document for judgments in qrels.values() for document in judgments}
            others = [document for document in corpus if document not in kept]
            more = min(max(0, int(self.documents or 0) - len(kept)), len(others))
            kept.update(others[index] for index in rng.choice(len(others), more, replace=False))
            corpus = {own_id: passage for own_id, passage in corpus.items() if own_id in kept}
        return replace(whole, queries={query: whole.queries[query] for query in ids}, qrels=qrels, corpus=corpus)

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
    rows = [parse_json(line) for _, line in numbered_lines(file) if line.strip()]  # read before, by BeirDataset
    return {row["_id"]: str(row["lang"]) for row in rows if row.get("lang")}


class RetrievalStudy:
    """A study that searches draws of test sets in several ways: the values of the parameter ``axis``.

    Texts are encoded at all dimensions in one pass and kept for the next cells. Only one draw is kept at a time, with
    the documents in float16, as ``jcv2 eval`` stores them.
    """

    axis: str
    ways: Sequence[Value]

    def __init__(self, encoder: JinaColbertEncoder, sampling: Sampling, *dims: int) -> None:
        self.encoder = encoder
        self.sampling = sampling
        self.dims = dims
        self._kept: dict[str, tuple[Any, Mapping[int, Vectors]]] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model with the fingerprint of each head, and sampling."""
        sampling = {name: getattr(self.sampling, name) for name in ("split", "queries", "documents")}
        return {**model_settings(self.encoder, self.dims), **sampling}

    def cells(self) -> list[Cell]:
        """Return a cell for each way and each draw of each set."""
        return self.sampling.cells(self.axis, self.ways)

    def search(self, cell: Cell, dataset: BeirDataset) -> tuple[Run, dict[str, Value], dict[str, Samples]]:
        """Return the run of a draw, and values and samples besides the quality of the run."""
        raise NotImplementedError

    def measure(self, cell: Cell) -> Cell:
        """Search the draw and evaluate the run."""
        dataset = self.sampling.dataset(cell.parameters)
        run, values, samples = self.search(cell, dataset)
        metrics = measure_run(without_own(run, dataset.own_documents()), dataset.qrels)
        size = {"language": dataset.language, "documents": len(dataset.corpus), "queries": len(dataset.queries)}
        for name in (NDCG, RECALL):
            samples[name] = {query: own[name] for query, own in metrics.per_query.items()}
        languages = self.sampling.languages(cell.parameters, dataset)
        return cell.measured({**size, **metrics.as_dict(), **values}, samples, languages)

    def documents(self, cell: Cell, dataset: BeirDataset) -> Mapping[int, Vectors]:
        """Return the document vectors of a cell's draw by dimension, in corpus order."""

        def encode() -> Mapping[int, Vectors]:
            found: dict[int, list[Tensor]] = {dim: [] for dim in self.dims}
            texts = [passage.full_text for passage in dataset.corpus.values()]
            # Encode in parts, because all vectors in float32 would take twice the memory.
            for start in range(0, len(texts), _ENCODED_AT_A_TIME):
                part = texts[start : start + _ENCODED_AT_A_TIME]
                encoded = self.encoder.encode_document(part, dim=self.dims, show_progress_bar=False)
                for dim in self.dims:
                    found[dim].extend(one.half() for one in encoded[dim])
            return found

        return self._keep("documents", self.sampling.corpus_key(cell.parameters), encode)

    def queries(self, cell: Cell, dataset: BeirDataset) -> Mapping[int, Vectors]:
        """Return the query vectors of a cell's draw by dimension, in the draw's order."""
        texts = list(dataset.queries.values())
        key = (cell.parameters["set"], cell.parameters["seed"])
        return self._keep(
            "queries", key, lambda: self.encoder.encode_query(texts, dim=self.dims, show_progress_bar=False)
        )

    def _keep(self, what: str, key: Any, encode: Callable[[], Mapping[int, Vectors]]) -> Mapping[int, Vectors]:
        if what not in self._kept or self._kept[what][0] != key:
            self._kept.pop(what, None)  # first, to free its memory
            self._kept[what] = (key, encode())
        return self._kept[what][1]


def exact_run(dataset: BeirDataset, queries: Vectors, documents: Vectors) -> Run:
    """Rank all documents by MaxSim and return the best of each query, see :func:`run_of`.

    Vectors are in the order of the test set. float16 documents are scored in the dtype of the queries.
    """
    scores = torch.empty(len(queries), len(documents))
    # Score texts of similar length together, because each block is padded to its longest text.
    for columns in _by_length(documents):
        part = [documents[column].to(queries[0].device, queries[0].dtype) for column in columns]
        for rows in _by_length(queries):
            block = maxsim([queries[row] for row in rows], part).cpu()
            scores[torch.tensor(rows)[:, None], torch.tensor(columns)] = block
    return run_of(scores, list(dataset.queries), list(dataset.corpus))


def _by_length(vectors: Vectors) -> Iterator[list[int]]:
    order = sorted(range(len(vectors)), key=lambda index: len(vectors[index]))
    for start in range(0, len(order), _SCORED_AT_A_TIME):
        yield order[start : start + _SCORED_AT_A_TIME]


@dataclass(frozen=True)
class Draws:
    """Measured cells, and statistics that pair the values of one parameter, the axis, by draw and query."""

    axis: str
    cells: Sequence[Cell]

    @classmethod
    def whole(cls, axis: str, cells: Sequence[Cell], values: Sequence[Value] = ()) -> Draws:
        """Return the draws in which all these values of the axis (by default, all there are) were measured.

        If there is no such draw yet, that is a ``StudyError``.
        """
        measured: dict[Any, set[Value]] = {}
        for one in cells:
            measured.setdefault(_draw(one), set()).add(one.parameters[axis])
        values = values or distinct(cells, axis)
        found = [one for one in cells if measured[_draw(one)] >= set(values)]
        if not found:
            raise StudyError(f"No draw has been measured with every {axis} yet, so there is nothing to report.")
        return cls(axis, found)

    @property
    def queries(self) -> int:
        """Number of distinct queries; those of several sets are distinct in a part of :meth:`split`."""
        return len({query for one in self.cells for query in one.samples[NDCG]})

    def samples(self, value: Value, measure: str = NDCG) -> dict[Any, Samples]:
        """Return the samples of a measure at a value of the axis, by draw."""
        return {_draw(one): one.samples[measure] for one in self.cells if one.parameters[self.axis] == value}

    def pairs(self, one: Value, other: Value, measure: str = NDCG) -> list[tuple[Samples, Samples]]:
        """Return the samples at two values of the axis, for each draw that has both."""
        first, second = self.samples(one, measure), self.samples(other, measure)
        return [(first[draw], second[draw]) for draw in first if draw in second]

    def mean(self, value: Value, measure: str = NDCG, *, less: Value = None, each_set: bool = False) -> Interval:
        """Return the mean at a value of the axis, or of the paired differences from the value ``less``.

        With ``each_set``, the means of the sets are averaged, all with the same weight, rather than all queries.
        """
        parts = list(self.each_set().values()) if each_set else [self]
        if less is None:
            return mean_over_sets([list(own.samples(value, measure).values()) for own in parts])
        return mean_over_sets([[subtract(*pair) for pair in own.pairs(value, less, measure)] for own in parts])

    def each_set(self) -> dict[str, Draws]:
        """Return the draws of each test set."""
        return {name: Draws(self.axis, having(self.cells, set=name)) for name in distinct(self.cells, "set")}

    def split(self, label: Callable[[Cell, str], str | None]) -> dict[str, Draws]:
        """Split by a label of each query. Queries with the label None are dropped.

        The set becomes part of a query's id, so that the queries of several sets can be pooled.
        """
        parts: dict[str, list[Cell]] = {}
        for one in self.cells:
            labels = {query: label(one, query) for query in one.samples[NDCG]}
            for name in dict.fromkeys(labels.values()):
                if name is None:
                    continue
                samples = {
                    measure: {
                        f"{one.parameters['set']} {query}": own[query] for query in own if labels.get(query) == name
                    }
                    for measure, own in one.samples.items()
                }
                parts.setdefault(name, []).append(Cell(one.parameters, one.values, samples))
        return {name: Draws(self.axis, own) for name, own in parts.items()}

    def by_language(self) -> dict[str, Draws]:
        """Split by the language of each query, or of its set if the query has none."""
        return self.split(lambda one, query: one.languages.get(query, str(one.values["language"] or "unknown")))

    def by_bucket(self, lengths: str, ends: Sequence[int]) -> dict[str, Draws]:
        """Split by a length sample into buckets with these upper ends, shortest first."""

        def label(one: Cell, query: str) -> str | None:
            if (length := one.samples[lengths].get(query)) is None:
                return None
            index = bisect_left(ends, length)
            low = ends[index - 1] + 1 if index else 1
            return f"{low}–{ends[index]}" if index < len(ends) else f"{low} and more"

        parts = self.split(label)
        return {name: parts[name] for name in sorted(parts, key=lambda name: int(re.split(r"\D", name)[0]))}

    def limits(self, settings: Mapping[str, Any]) -> list[str]:
        """Return sentences for a report on what draws of this size can show."""
        sets = self.each_set()
        drawn = {name: own.cells[0].values for name, own in sets.items()}
        counts = ", ".join(f"{name} {own['queries']:,} in {own['documents']:,}" for name, own in drawn.items())
        lines = [f"Queries, and documents searched, per draw: {counts}."]
        if settings["documents"] is not None:
            lines.append(
                f"At most about {settings['documents']:,} documents of a set are searched. They include all relevant "
                "ones, so figures are higher than published ones of the whole set. Compare rows of a table instead."
            )
        if min(int(own["documents"] or 0) for own in drawn.values()) < _SMALL_CORPUS:
            lines.append("In a small corpus, Recall@100 is near 1 for any system: compare nDCG@10.")
        means = [own.mean(value) for own in sets.values() for value in distinct(own.cells, self.axis)]
        halves = sorted((own.high - own.low) / 2 for own in means)
        lines.append(
            f"nDCG@10 of one set is known to within ±{halves[0]:.3f} to ±{halves[-1]:.3f}, paired differences more "
            "closely. An interval that contains 0 shows no difference, which does not mean that there is none."
        )
        return [*lines, "Intervals are about other queries of the same kind, not about other sets or domains."]


def _draw(cell: Cell) -> tuple[Value, Value]:
    return cell.parameters.get("set"), cell.parameters["seed"]


def having(cells: Sequence[Cell], **parameters: Value) -> list[Cell]:
    """Return the cells with these parameters."""
    return [one for one in cells if all(one.parameters[name] == value for name, value in parameters.items())]


def distinct(cells: Sequence[Cell], name: str) -> list[Any]:
    """Return the distinct values of a parameter, in the order they were measured."""
    return list(dict.fromkeys(one.parameters[name] for one in cells))
