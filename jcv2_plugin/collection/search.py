"""The part of a collection that searches: by MaxSim, with a first stage or without, and with explanations."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from qdrant_client import models

from jcv2_plugin.checks import check_query, check_query_vectors, in_batches
from jcv2_plugin.collection.state import CollectionState, OpenCollection
from jcv2_plugin.documents import HASH_KEY, SearchHit, StoredDocument, point_id
from jcv2_plugin.engines.base import Candidates, Matrix, Record, SearchRequest
from jcv2_plugin.engines.first_stage import FIRST_STAGES, STAGE_NAMES, FirstStage
from jcv2_plugin.engines.schema import VECTOR_NAME
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError
from jcv2_plugin.scoring.explanation import Explanation, TokenVectors, compare
from jcv2_plugin.scoring.mmr import DocumentSimilarities, maximal_marginal_relevance

_QUERIES_PER_SEARCH = 64
_DOCUMENTS_AT_A_TIME = 16
"""Whose vectors are in memory at once: up to 4 MB each."""

CANDIDATES = 300
"""Candidates for MaxSim, where a search names no number. Measured by ``benchmarks/first_stages.py``."""
CANDIDATES_PER_RESULT = 4
"""And at least so many for each document asked for."""
EXACT_UP_TO = 1000
"""Documents up to which all are ranked. It costs up to 2.5 times a two-stage search there, and misses nothing."""
FETCHED = 20
"""Hits of which a diverse search chooses, where it names no number; and at least the next so many a result."""
FETCHED_PER_RESULT = 4


@dataclass(frozen=True)
class _Options:
    """What the searches take beside queries and a number of results."""

    filter: models.Filter | None
    score_threshold: float | None
    candidates: int | None
    exact: bool | None
    first_stage: FirstStage | None

    def __post_init__(self) -> None:
        if self.filter is not None and not isinstance(self.filter, models.Filter):
            raise InvalidQueryError(f"filter must be a qdrant_client.models.Filter, got {type(self.filter).__name__}.")
        least = self.score_threshold
        if least is not None and (isinstance(least, bool) or not isinstance(least, (int, float)) or math.isnan(least)):
            raise InvalidQueryError(f"score_threshold must be a number, got {least!r}.")


class Searching(CollectionState):
    """See the module."""

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        filter: models.Filter | None = None,
        score_threshold: float | None = None,
        candidates: int | None = None,
        exact: bool | None = None,
        first_stage: FirstStage | None = None,
        with_explanation: bool = False,
    ) -> list[SearchHit]:
        """The ``k`` documents of the largest MaxSim with the query, best first.

        In a small collection MaxSim ranks all documents. In one with a first stage and more than 1,000 documents it
        ranks the candidates that the first stage finds: scores are the same, and now and then a document is missed.

        Args:
            query: The question.
            k: How many.
            filter: Search only what it selects; metadata is addressed as ``metadata.<key>``.
            score_threshold: Leave out documents scoring less.
            candidates: How many the first stage is to find; more miss less and take longer. None takes 300, and at
                least ``4 * k``.
            exact: True ranks all documents, False uses the first stage however few there are.
            first_stage: For this search another than the collection's, of what it stores: one with ``"hybrid"`` has
                ``"pooled"`` and ``"bm25"`` too. One that is named is used however few documents there are; ``"none"``
                ranks all, as ``exact=True``.
            with_explanation: Give each hit the token-by-token comparison with the query, see :meth:`explain`. The
                vectors of all hits are read together.

        Raises:
            InvalidQueryError: The query is empty or no string, ``k`` or ``candidates`` is not positive, or the
                collection has no such first stage to be used.
        """
        return self.search_many(
            [query],
            k,
            filter=filter,
            score_threshold=score_threshold,
            candidates=candidates,
            exact=exact,
            first_stage=first_stage,
            with_explanation=with_explanation,
        )[0]

    def search_many(
        self,
        queries: Sequence[str],
        k: int = 10,
        *,
        filter: models.Filter | None = None,
        score_threshold: float | None = None,
        candidates: int | None = None,
        exact: bool | None = None,
        first_stage: FirstStage | None = None,
        with_explanation: bool = False,
    ) -> list[list[SearchHit]]:
        """:meth:`search` for several queries at once, encoded in batches; a list of hits for each."""
        if isinstance(queries, str):
            raise InvalidQueryError("Give a list of queries to search_many, or one query to search.")
        k = _positive(k, "k")
        options = _Options(filter, score_threshold, candidates, exact, first_stage)
        for query in queries:
            check_query(query)

        def work(current: OpenCollection) -> list[list[SearchHit]]:
            found: list[list[SearchHit]] = []
            for start in range(0, len(queries), _QUERIES_PER_SEARCH):
                batch = queries[start : start + _QUERIES_PER_SEARCH]
                vectors = _query_vectors(current, batch)
                hits = _hits(current, batch, vectors, k, options)
                found.extend(_explained(current, batch, vectors, hits) if with_explanation else hits)
            return found

        return self._with_current(work)

    def search_mmr(
        self,
        query: str,
        k: int = 10,
        *,
        fetch_k: int | None = None,
        lambda_mult: float = 0.5,
        filter: models.Filter | None = None,
        score_threshold: float | None = None,
        candidates: int | None = None,
        exact: bool | None = None,
        first_stage: FirstStage | None = None,
        with_explanation: bool = False,
    ) -> list[SearchHit]:
        """``k`` of the best documents that are not all the same, by maximal marginal relevance.

        The best hit comes first, then those that are relevant and unlike the ones before; see
        :mod:`jcv2_plugin.scoring.mmr`. Scores are as in :meth:`search`, and not in falling order.

        Args:
            query: The question.
            k: How many.
            fetch_k: Of how many of the best hits they are chosen; at least ``k``. None takes ``4 * k``, and at
                least 20.
            lambda_mult: From 0 (as unlike each other as can be) to 1 (by relevance alone).
            filter: As for :meth:`search`, as are all that follow.
            score_threshold: See :meth:`search`.
            candidates: See :meth:`search`.
            exact: See :meth:`search`.
            first_stage: See :meth:`search`.
            with_explanation: See :meth:`search`.

        Raises:
            InvalidQueryError: As :meth:`search`; or ``lambda_mult`` is not between 0 and 1.
        """
        k = _positive(k, "k")
        fetched = max(FETCHED, FETCHED_PER_RESULT * k) if fetch_k is None else max(k, _positive(fetch_k, "fetch_k"))
        if isinstance(lambda_mult, bool) or not isinstance(lambda_mult, (int, float)) or not 0 <= lambda_mult <= 1:
            raise InvalidQueryError(
                f"lambda_mult must be a number from 0 (most diverse) to 1 (by relevance alone), got {lambda_mult!r}."
            )
        options = _Options(filter, score_threshold, candidates, exact, first_stage)
        check_query(query)

        def work(current: OpenCollection) -> list[SearchHit]:
            vectors = _query_vectors(current, [query])
            (hits,) = _hits(current, [query], vectors, fetched, options)
            likeness = DocumentSimilarities(matrix for _, matrix in _with_vectors(current, hits, pooled=True))
            chosen = maximal_marginal_relevance([hit.relevance for hit in hits], likeness, k, lambda_mult)
            found = [[hits[position] for position in chosen]]
            return (_explained(current, [query], vectors, found) if with_explanation else found)[0]

        return self._with_current(work)

    def explain(self, query: str, id: str, *, query_vectors: Matrix | None = None) -> Explanation:
        """Which token of a stored document each query token matched, and how well.

        With token pooling a stored vector stands for several tokens, so the document is encoded anew, unpooled, and
        the explanation's score is a little larger than the search's.

        Args:
            query: The query.
            id: The document's id.
            query_vectors: The query's vectors where they are known, which saves encoding it for each document.

        Raises:
            InvalidDocumentError: There is no such document.
        """

        def work(current: OpenCollection) -> Explanation:
            found = current.engine.retrieve([point_id(id)], with_payload=True, with_vectors=False)
            if not found:
                raise InvalidDocumentError(f"{current.engine.title} has no document {id!r}.")
            vectors = [query_vectors] if query_vectors is not None else _query_vectors(current, [query])
            explained = _explained(current, [query], vectors, [[_hit(found[0], len(vectors[0]))]])[0][0].explanation
            assert explained is not None
            return explained

        return self._with_current(work)


def _query_vectors(current: OpenCollection, queries: Sequence[str]) -> list[Matrix]:
    return check_query_vectors(current.encoder.query_vectors(queries, current.schema.dim))


def _hits(
    current: OpenCollection, queries: Sequence[str], vectors: Sequence[Matrix], k: int, options: _Options
) -> list[list[SearchHit]]:
    limit = _candidates(current, k, options.candidates, options.exact, options.first_stage)
    requests = [SearchRequest(matrix) for matrix in vectors]
    if limit is not None:
        names = STAGE_NAMES[options.first_stage or current.schema.first_stage]
        stages = [stage for stage in current.stages if stage.name in names]
        requests = [
            SearchRequest(matrix, Candidates({stage.name: stage.query(query, matrix) for stage in stages}, limit))
            for query, matrix in zip(queries, vectors, strict=True)
        ]
    found = current.engine.search(requests, k, filter=options.filter, score_threshold=options.score_threshold)
    return [[_hit(record, len(matrix)) for record in records] for records, matrix in zip(found, vectors, strict=True)]


def _candidates(
    current: OpenCollection,
    k: int,
    candidates: int | None,
    exact: bool | None,
    first_stage: FirstStage | None = None,
) -> int | None:
    """How many candidates the first stage is to find; None to rank everything."""
    if candidates is not None:
        candidates = _positive(candidates, "candidates")
    if first_stage is not None:
        _check_first_stage(current, first_stage, candidates, exact)
    if exact or first_stage == "none":
        return None
    if current.schema.first_stage == "none":
        if exact is False or candidates is not None:
            raise InvalidQueryError(
                f"{current.engine.title} has no first stage, so MaxSim ranks all its documents. Leave out candidates "
                "and exact, or give it one: migrate(first_stage='hybrid')."
            )
        return None
    auto = exact is None and candidates is None and first_stage is None
    if auto and (not current.engine.first_stage_pays or current.size() <= EXACT_UP_TO):
        return None
    return max(candidates or max(CANDIDATES, CANDIDATES_PER_RESULT * k), k)


def _check_first_stage(
    current: OpenCollection, first_stage: FirstStage, candidates: int | None, exact: bool | None
) -> None:
    stored = current.schema.first_stage
    has = [one for one in FIRST_STAGES if set(STAGE_NAMES[one]) <= set(STAGE_NAMES[stored])]
    if first_stage not in has:
        raise InvalidQueryError(
            f"{current.engine.title} was made with first_stage={stored!r}, so a search may use {has}, not "
            f"{first_stage!r}. Name one of these, or give the collection another: migrate(first_stage=...)."
        )
    if first_stage == "none" and (exact is False or candidates is not None):
        raise InvalidQueryError(
            "first_stage='none' ranks all documents, so there are no candidates to be found. Leave it out, or leave "
            "out candidates and exact."
        )
    if first_stage != "none" and exact:
        raise InvalidQueryError(
            f"exact=True ranks all documents, so first_stage={first_stage!r} has no part in it. Give one of the two."
        )


def _hit(record: Record, query_vectors: int) -> SearchHit:
    stored = StoredDocument.from_payload(record.payload)
    return SearchHit(stored.id, stored.text, stored.metadata, stored.payload, record.score, query_vectors)


def _explained(
    current: OpenCollection, queries: Sequence[str], vectors: Sequence[Matrix], found: Sequence[Sequence[SearchHit]]
) -> list[list[SearchHit]]:
    """The same hits with their explanations. A document that several queries found is read once."""
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
    """Documents that were found with their token vectors, in their order, a few in memory at a time.

    Args:
        current: Where they were found.
        hits: What was found.
        pooled: Whether pooled vectors will do; otherwise the documents of a collection with pooling are encoded anew.
    """
    stored_will_do = pooled or current.schema.pool_factor == 1
    for batch in in_batches(hits, _DOCUMENTS_AT_A_TIME):
        known: dict[str, Matrix] = {}
        if stored_will_do:
            hashes = {point_id(hit.id): hit.payload.get(HASH_KEY) for hit in batch}
            for record in current.engine.retrieve(list(hashes), with_payload=[HASH_KEY], with_vectors=[VECTOR_NAME]):
                # One that was replaced since it was found is not the text of the hit any more.
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


def _positive(value: int, name: str) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 1:
        raise InvalidQueryError(f"{name} must be a positive integer, got {value!r}.")
    if number >= 2**31:  # engines differ in what they make of it
        raise InvalidQueryError(f"{name} must be below 2**31, got {value!r}.")
    return number
