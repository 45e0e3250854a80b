"""Searching a collection by MaxSim, with or without a first stage: search, MMR and explanations."""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar

from jcv2_plugin.checks import check_flag, check_number, check_positive, check_query, check_query_vectors, in_batches
from jcv2_plugin.collection.state import CollectionState, OpenCollection
from jcv2_plugin.documents import HASH_KEY, SearchHit, StoredDocument, as_list, id_list, point_id
from jcv2_plugin.encoder.base import Encoder
from jcv2_plugin.encoder.remote import RemoteEncoder
from jcv2_plugin.engines.base import RRF_K, Candidates, Fusion, Matrix, Record, SearchRequest
from jcv2_plugin.engines.first_stage import stage_names
from jcv2_plugin.engines.schema import VECTOR_NAME
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError
from jcv2_plugin.filters import check_filter
from jcv2_plugin.scoring.explanation import Explanation, TokenVectors, compare
from jcv2_plugin.scoring.mmr import DocumentSimilarities, maximal_marginal_relevance

if TYPE_CHECKING:
    from qdrant_client import models

_QUERIES_PER_SEARCH = 64
_DOCUMENTS_AT_A_TIME = 16
"""Number of documents whose vectors are held in memory at once, up to 4 MB each."""

CANDIDATES = 300
"""Default number of candidates for MaxSim. Measured by ``benchmarks/first_stages.py``."""
CANDIDATES_PER_RESULT = 4
"""Minimum number of candidates per requested result, by default."""
EXACT_UP_TO = 1000
"""Number of documents up to which searches are exact. They take up to 2.5 times as long there and miss nothing."""
FETCHED = 20
"""Default number of hits that MMR selects from."""
FETCHED_PER_RESULT = 4
"""Minimum number of hits that MMR selects from per requested result, by default."""


class SearchOptions(TypedDict, total=False):
    """Options of a search, as keyword arguments of :meth:`ColbertCollection.search` and its siblings.

    Attributes:
        filter: Search only documents that match. Metadata fields are addressed as ``metadata.<key>``.
        score_threshold: Leave out documents with a lower score.
        candidates: Number of candidates from the first stage. More candidates miss fewer documents but take longer.
            Defaults to 300, or ``4 * k`` if that is larger.
        exact: True ranks all documents, False always uses the first stage. By default, this depends on the size of the
            collection.
        first_stage: Name of the first stage for this search, one that the collection stores: a ``"hybrid"`` collection
            also has ``"pooled"`` and ``"bm25"``, and your own stages have theirs. It is used whatever the size of the
            collection. ``"none"`` ranks all documents, like ``exact=True``.
        rrf_k: Constant of the reciprocal rank fusion that merges the candidates of several stages, 2 by default. With
            a larger one, the first ranks count for less. Uses the first stage whatever the size of the collection.
        rrf_weights: Weight of each stage in the fusion by its name, such as ``{"bm25": 0.5}``. Others have 1. Uses the
            first stage whatever the size of the collection.
        with_explanation: Add the token-by-token comparison with the query to each hit, see
            :meth:`ColbertCollection.explain`. The vectors of all hits are read together.
    """

    filter: models.Filter | None
    score_threshold: float | None
    candidates: int | None
    exact: bool | None
    first_stage: str | None
    rrf_k: int | None
    rrf_weights: Mapping[str, float] | None
    with_explanation: bool


@dataclass(frozen=True)
class CheckedOptions:
    """The options of a search, checked."""

    filter: models.Filter | None = None
    score_threshold: float | None = None
    candidates: int | None = None
    exact: bool | None = None
    first_stage: str | None = None
    rrf_k: int | None = None
    rrf_weights: Mapping[str, float] | None = None
    with_explanation: bool = False

    @classmethod
    def of(cls, options: SearchOptions) -> CheckedOptions:
        """Check what does not depend on the collection. TypeError for an unknown option, or InvalidQueryError."""
        if unknown := sorted(options.keys() - SearchOptions.__annotations__.keys()):
            raise TypeError(
                f"There are no search options {unknown}. Use some of {sorted(SearchOptions.__annotations__)}."
            )
        given = cls(**options)
        check_filter(given.filter)
        if given.first_stage is not None and not isinstance(given.first_stage, str):
            raise InvalidQueryError(
                f"A search takes the name of a stored first stage, got {given.first_stage!r:.80}. Objects are for "
                "create and open."
            )
        checks: dict[str, Callable[[Any, str], Any]] = {
            "score_threshold": check_number,
            "candidates": check_positive,
            "exact": check_flag,
            "rrf_k": check_positive,
            "rrf_weights": _weights,
            "with_explanation": check_flag,
        }
        values = {name: getattr(given, name) for name in checks}
        set_ones = {name for name, value in values.items() if value is not None or name == "with_explanation"}
        return replace(given, **{name: checks[name](values[name], name) for name in set_ones})

    @property
    def fusion(self) -> Fusion | None:
        """The fusion that was asked for, or None for the default."""
        if self.rrf_k is None and self.rrf_weights is None:
            return None
        return Fusion(self.rrf_k or RRF_K, self.rrf_weights or {})


@dataclass(frozen=True)
class EncodedQueries:
    """Vectors of queries that were encoded before the search, by text, and the encoder and dimension they are of."""

    encoder: Encoder
    dim: int
    vectors: Mapping[str, Matrix]


T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    """A search whose arguments have been checked, to be run on a collection, perhaps with its queries encoded."""

    def __call__(self, current: OpenCollection, encoded: EncodedQueries | None = None) -> T_co:
        """Search."""


async def run_async(state: CollectionState, queries: Sequence[str], work: Work[T_co]) -> T_co:
    """Search in a thread, which does not wait while a server encodes the queries."""
    current = state.current
    encoder, encoded = await asyncio.to_thread(lambda: current.encoder), None
    if isinstance(encoder, RemoteEncoder):
        vectors = await encoder.aquery_vectors(queries, current.schema.dim)
        encoded = EncodedQueries(encoder, current.schema.dim, dict(zip(queries, vectors, strict=True)))
    return await asyncio.to_thread(state.run, lambda now: work(now, encoded))


def many(queries: Iterable[str], k: int, options: SearchOptions) -> tuple[list[str], Work[list[list[SearchHit]]]]:
    """Return queries, perhaps of a generator, and the search for the ``k`` best hits of each. All is checked here."""
    limit, checked = check_positive(k, "k"), CheckedOptions.of(options)
    listed = as_list(queries, "queries", InvalidQueryError)
    for query in listed:
        check_query(query)

    def work(current: OpenCollection, encoded: EncodedQueries | None = None) -> list[list[SearchHit]]:
        found: list[list[SearchHit]] = []
        for batch in in_batches(listed, _QUERIES_PER_SEARCH):
            vectors = _query_vectors(current, batch, encoded)
            hits = _hits(current, batch, vectors, limit, checked)
            found.extend(_explained(current, batch, vectors, hits) if checked.with_explanation else hits)
        return found

    return listed, work


def mmr(query: str, k: int, fetch_k: int | None, lambda_mult: float, options: SearchOptions) -> Work[list[SearchHit]]:
    """Return the search for the ``k`` of the ``fetch_k`` best hits that MMR chooses. All is checked here."""
    limit = check_positive(k, "k")
    fetched = max(FETCHED, FETCHED_PER_RESULT * limit)
    if fetch_k is not None:
        fetched = max(limit, check_positive(fetch_k, "fetch_k"))
    balance = check_number(lambda_mult, "lambda_mult")
    if not 0 <= balance <= 1:
        raise InvalidQueryError(
            f"lambda_mult must be between 0 (maximum diversity) and 1 (relevance only), got {lambda_mult!r}."
        )
    checked = CheckedOptions.of(options)
    check_query(query)

    def work(current: OpenCollection, encoded: EncodedQueries | None = None) -> list[SearchHit]:
        vectors = _query_vectors(current, [query], encoded)
        (hits,) = _hits(current, [query], vectors, fetched, checked)
        likeness = DocumentSimilarities(matrix for _, matrix in _with_vectors(current, hits, pooled=True))
        chosen = maximal_marginal_relevance([hit.relevance for hit in hits], likeness, limit, balance)
        found = [[hits[position] for position in chosen]]
        return (_explained(current, [query], vectors, found) if checked.with_explanation else found)[0]

    return work


def explain(current: OpenCollection, query: str, id: str, query_vectors: Matrix | None) -> Explanation:
    """Explain the score of one document."""
    check_query(query)
    found = current.engine.retrieve([point_id(one) for one in id_list([id])], with_payload=True, with_vectors=False)
    if not found:
        raise InvalidDocumentError(f"{current.engine.title} has no document {id!r}.")
    vectors = [query_vectors] if query_vectors is not None else _query_vectors(current, [query])
    explained = _explained(current, [query], vectors, [[_hit(found[0], len(vectors[0]))]])[0][0].explanation
    assert explained is not None
    return explained


def _query_vectors(
    current: OpenCollection, queries: Sequence[str], encoded: EncodedQueries | None = None
) -> list[Matrix]:
    # A migration may have replaced the encoder since the queries were encoded.
    if encoded is not None and encoded.encoder is current.encoder and encoded.dim == current.schema.dim:
        return check_query_vectors([encoded.vectors[query] for query in queries])
    return check_query_vectors(current.encoder.query_vectors(queries, current.schema.dim))


def _hits(
    current: OpenCollection, queries: Sequence[str], vectors: Sequence[Matrix], k: int, options: CheckedOptions
) -> list[list[SearchHit]]:
    limit = _candidates(current, k, options)
    requests = [SearchRequest(matrix) for matrix in vectors]
    if limit is not None:
        names = stage_names(options.first_stage or current.schema.first_stage)
        requests = [
            SearchRequest(matrix, Candidates(stages, limit, options.fusion))
            for matrix, stages in zip(vectors, current.query_stages(names, queries, vectors), strict=True)
        ]
    found = current.engine.search(requests, k, filter=options.filter, score_threshold=options.score_threshold)
    return [[_hit(record, len(matrix)) for record in records] for records, matrix in zip(found, vectors, strict=True)]


def _candidates(current: OpenCollection, k: int, options: CheckedOptions) -> int | None:
    """Return the number of candidates for the first stage, or None for an exact search."""
    candidates, exact, first_stage = options.candidates, options.exact, options.first_stage
    if first_stage is not None:
        _check_first_stage(current, first_stage, candidates, exact)
    if (fusion := options.fusion) is not None:
        _check_fusion(current, fusion, first_stage, exact)
    if exact or first_stage == "none":
        return None
    if current.schema.first_stage == "none":
        if exact is False or candidates is not None:
            raise InvalidQueryError(
                f"{current.engine.title} has no first stage, so MaxSim ranks all its documents. Leave out candidates "
                "and exact, or migrate the collection to a first stage such as hybrid."
            )
        return None
    auto = exact is None and candidates is None and first_stage is None and fusion is None
    if auto and (not current.engine.first_stage_pays or current.lacks_stages or current.size() <= EXACT_UP_TO):
        return None
    return max(candidates or max(CANDIDATES, CANDIDATES_PER_RESULT * k), k)


def _check_first_stage(current: OpenCollection, first_stage: str, candidates: int | None, exact: bool | None) -> None:
    stored = current.schema.first_stage
    names = stage_names(stored)
    hybrid = [one for one in ("hybrid", stored) if len(stage_names(one)) > 1 and set(stage_names(one)) <= set(names)]
    has = list(dict.fromkeys(["none", *names, *hybrid]))
    if first_stage not in has:
        raise InvalidQueryError(
            f"{current.engine.title} has the first stage {stored!r}, so a search can use {has}, not "
            f"{first_stage!r}. Choose one of these, or migrate the collection to another first stage."
        )
    if first_stage == "none" and (exact is False or candidates is not None):
        raise InvalidQueryError(
            "first_stage='none' ranks all documents, so it takes no candidates and no exact=False. Leave them out."
        )
    if first_stage != "none" and exact:
        raise InvalidQueryError(
            f"exact=True ranks all documents, so first_stage={first_stage!r} would not be used. Give one of the two."
        )


def _check_fusion(current: OpenCollection, fusion: Fusion, first_stage: str | None, exact: bool | None) -> None:
    names = stage_names(first_stage or current.schema.first_stage)
    if exact or len(names) < 2:
        found = "is exact" if exact or not names else f"uses the first stage {names[0]!r} alone"
        raise InvalidQueryError(
            f"rrf_k and rrf_weights are for merging the candidates of several stages, and this search {found}. Leave "
            "them out."
        )
    if unknown := sorted(set(fusion.weights) - set(names)):
        raise InvalidQueryError(f"rrf_weights has {unknown}, but the stages are {list(names)}.")
    if not any(weight > 0 for weight in fusion.of(dict.fromkeys(names)) or [1.0]):
        raise InvalidQueryError(f"rrf_weights={dict(fusion.weights)} are all 0. Give at least one stage some weight.")


def _weights(given: Any, name: str) -> dict[str, float]:
    if not isinstance(given, Mapping):
        raise InvalidQueryError(f"{name} must be a dict of weights by the name of a stage, got {given!r:.80}.")
    weights = {str(name): check_number(weight, f"rrf_weights[{name!r}]") for name, weight in given.items()}
    if wrong := [name for name, weight in weights.items() if not 0 <= weight < math.inf]:
        raise InvalidQueryError(f"rrf_weights[{wrong[0]!r}] must be 0 or more, got {weights[wrong[0]]!r}.")
    return weights


def _hit(record: Record, query_vectors: int) -> SearchHit:
    stored = StoredDocument.from_payload(record.payload)
    return SearchHit(stored.id, stored.text, stored.metadata, stored.payload, record.score, query_vectors)


def _explained(
    current: OpenCollection, queries: Sequence[str], vectors: Sequence[Matrix], found: Sequence[Sequence[SearchHit]]
) -> list[list[SearchHit]]:
    """Add explanations to the hits. A document found by several queries is read once."""
    documents: dict[str, SearchHit] = {}
    askers: defaultdict[str, list[int]] = defaultdict(list)
    for position, hits in enumerate(found):
        for hit in hits:
            documents.setdefault(hit.id, hit)
            askers[hit.id].append(position)
    asked = [
        TokenVectors.of_query(current.encoder, query, matrix) for query, matrix in zip(queries, vectors, strict=True)
    ]
    explanations: dict[tuple[int, str], Explanation] = {}
    for hit, matrix in _with_vectors(current, list(documents.values()), pooled=False):
        document = TokenVectors.of_document(current.encoder, hit.text, matrix, current.schema.long_documents)
        for position in askers[hit.id]:
            explanations[position, hit.id] = compare(asked[position], document)
    return [
        [replace(hit, explanation=explanations[position, hit.id]) for hit in hits]
        for position, hits in enumerate(found)
    ]


def _with_vectors(
    current: OpenCollection, hits: Sequence[SearchHit], *, pooled: bool
) -> Iterator[tuple[SearchHit, Matrix]]:
    """Yield the hits with their token vectors, in order, a few in memory at a time. Unless ``pooled`` vectors suffice,
    the documents of a collection with pooling are encoded again.
    """
    stored_will_do = pooled or current.schema.pool_factor == 1
    for batch in in_batches(hits, _DOCUMENTS_AT_A_TIME):
        known: dict[str, Matrix] = {}
        if stored_will_do:
            hashes = {point_id(hit.id): hit.payload.get(HASH_KEY) for hit in batch}
            for record in current.engine.retrieve(list(hashes), with_payload=[HASH_KEY], with_vectors=[VECTOR_NAME]):
                # Skip documents that were replaced since the search: their text is no longer that of the hit.
                if record.vectors is not None and record.payload.get(HASH_KEY) == hashes[record.id]:
                    known[record.id] = record.vectors
        missing = [hit for hit in batch if point_id(hit.id) not in known]
        if missing:
            encoded = current.encoder.document_vectors(
                [hit.text for hit in missing], current.schema.dim, current.schema.long_documents
            )
            known.update(zip((point_id(hit.id) for hit in missing), encoded, strict=True))
        for hit in batch:
            yield hit, known[point_id(hit.id)]
