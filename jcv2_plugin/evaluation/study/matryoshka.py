"""The study ``matryoshka``: quality, bytes and scoring time at each Matryoshka dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from sentence_transformers.util.similarity import maxsim
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from jcv2_plugin.encoder.model import JinaColbertEncoder
from jcv2_plugin.evaluation.beir import BeirDataset
from jcv2_plugin.evaluation.metrics import measure_run
from jcv2_plugin.evaluation.study.base import Cell, Measured, Report, Result, Value
from jcv2_plugin.evaluation.study.environment import clock, synchronize
from jcv2_plugin.evaluation.study.matryoshka_report import RELEVANT, matryoshka_report
from jcv2_plugin.evaluation.study.retrieval import (
    EncodedSets,
    Sampling,
    cells_of,
    exact_run,
    model_settings,
    quality,
    sizes,
)

_TIMED_QUERIES = 10
_TIMED_DOCUMENTS = 300  # number of candidates of a first stage


class MatryoshkaStudy:
    """Compare Matryoshka dimensions; see :class:`jcv2_plugin.evaluation.study.base.Study`.

    Args:
        encoder: Model with the heads to measure.
        sampling: Test sets and draws.
    """

    name = "matryoshka"
    title = "Matryoshka dimensions: what each costs and what it keeps"

    def __init__(self, encoder: JinaColbertEncoder, sampling: Sampling) -> None:
        self.encoder = encoder
        self.sampling = sampling
        self.dims = tuple(sorted(encoder.dims, reverse=True))
        self._sets = EncodedSets(encoder, sampling, self.dims)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Model with the fingerprint of each head, and sampling."""
        return {**model_settings(self.encoder, self.dims), "largest": self.dims[0], **self.sampling.settings}

    def cells(self) -> Sequence[Cell]:
        """Return a cell for each head and each draw of each set."""
        return cells_of(self.sampling, "dim", self.dims)

    def measure(self, cell: Cell) -> Measured:
        """Search the draw with exact MaxSim at one dimension, and time scoring against the largest dimension."""
        dim = int(cell.parameters["dim"] or 0)
        dataset = self.sampling.dataset(cell.parameters)
        documents = self._sets.documents(cell.parameters, dataset)
        queries = self._sets.queries(cell.parameters, dataset)
        metrics = measure_run(exact_run(dataset, queries[dim], documents[dim]), dataset.qrels)
        figures, samples = quality(metrics)
        tokens = [len(one) for one in documents[dim]]
        mean_tokens = sum(tokens) / len(tokens)
        values: dict[str, Value] = {
            **sizes(dataset),
            **figures,
            "tokens a document": mean_tokens,
            "bytes a token, float16": 2 * dim,
            "bytes a token, float32": 4 * dim,
            "bytes a document, float16": 2 * dim * mean_tokens,
            "bytes a document, float32": 4 * dim * mean_tokens,
        }
        largest = self.dims[0]
        values.update(
            _scoring_time((queries[dim], documents[dim]), (queries[largest], documents[largest]))
            if dim != largest
            else {"scoring time, to the largest head": 1.0}
        )
        samples[RELEVANT] = _relevant_tokens(dataset, tokens)
        return Measured(values, samples, self.sampling.languages(cell.parameters, dataset))

    def report(self, results: Sequence[Result]) -> Report:
        """Return the report."""
        return matryoshka_report(self.settings, results)


def _relevant_tokens(dataset: BeirDataset, tokens: Sequence[int]) -> dict[str, float]:
    """Return the mean length of the relevant documents, by query."""
    lengths = dict(zip(dataset.corpus, tokens, strict=True))
    found = {}
    for query, judgments in dataset.qrels.items():
        own = [lengths[document] for document, grade in judgments.items() if grade > 0 and document in lengths]
        if own:
            found[query] = sum(own) / len(own)
    return found


_Side = tuple[Sequence[Tensor], Sequence[Tensor]]


def _scoring_time(side: _Side, largest: _Side) -> dict[str, Value]:
    """Time MaxSim of a query with up to 300 documents, alternating with the largest head, and return the medians."""
    sides = [_padded(*side), _padded(*largest)]
    times: list[list[float]] = [[], []]
    for query in range(min(_TIMED_QUERIES, len(side[0])) + 1):
        for number, (queries, documents, mask) in enumerate(sides):
            start = clock(documents.device)
            maxsim(queries[query % len(queries)], documents, b_mask=mask)
            synchronize(documents.device)
            if query:  # the first is a warm-up
                times[number].append(clock(documents.device) - start)
    own, reference = times
    ratio = median(one / other for one, other in zip(own, reference, strict=True))
    found: dict[str, Value] = {"scoring time, to the largest head": ratio}
    if sides[0][1].is_cuda:
        found["scoring, ms"] = 1000 * median(own)
    return found


def _padded(queries: Sequence[Tensor], documents: Sequence[Tensor]) -> tuple[Sequence[Tensor], Tensor, Tensor]:
    some = [one.to(queries[0].device, queries[0].dtype) for one in documents[:_TIMED_DOCUMENTS]]
    mask = pad_sequence([torch.ones(len(one), dtype=torch.bool, device=one.device) for one in some], batch_first=True)
    return queries, pad_sequence(some, batch_first=True), mask
