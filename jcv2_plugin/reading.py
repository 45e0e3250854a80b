"""The part of a collection that reads: searching, getting, counting, explaining."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from qdrant_client import models

from jcv2_plugin.documents import ID_KEY, SearchHit, StoredDocument, is_unicode, point_id
from jcv2_plugin.engines.base import Candidates, Matrix, Record, SearchRequest
from jcv2_plugin.errors import CollectionError, InvalidDocumentError, InvalidQueryError, InvalidVectorError
from jcv2_plugin.explanation import Explanation, explain
from jcv2_plugin.state import CollectionState, OpenCollection

_QUERIES_PER_SEARCH = 64

CANDIDATES = 300
"""Candidates for MaxSim, where a search names no number. Measured by ``benchmarks/first_stages.py``."""
CANDIDATES_PER_RESULT = 4
"""And at least so many for each document asked for."""
EXACT_UP_TO = 1000
"""Documents up to which all are ranked. It costs up to 2.5 times a two-stage search there, and misses nothing."""


class Reading(CollectionState):
    """See the module."""

    def __repr__(self) -> str:
        return f"ColbertCollection({self._engine.place!r}, model={self.schema.model!r}, dim={self.dim})"

    def __len__(self) -> int:
        return self.count()

    def search(
        self,
        query: str,
        k: int = 10,
        *,
        filter: models.Filter | None = None,
        score_threshold: float | None = None,
        candidates: int | None = None,
        exact: bool | None = None,
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

        Raises:
            InvalidQueryError: The query is empty or no string, ``k`` or ``candidates`` is not positive, or the
                collection has no first stage to be used.
        """
        return self.search_many(
            [query], k, filter=filter, score_threshold=score_threshold, candidates=candidates, exact=exact
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
    ) -> list[list[SearchHit]]:
        """:meth:`search` for several queries at once, encoded in batches; a list of hits for each."""
        if isinstance(queries, str):
            raise InvalidQueryError("Give a list of queries to search_many, or one query to search.")
        k = _positive(k, "k")
        if filter is not None and not isinstance(filter, models.Filter):
            raise InvalidQueryError(f"filter must be a qdrant_client.models.Filter, got {type(filter).__name__}.")
        for query in queries:
            if not isinstance(query, str) or not query.strip() or not is_unicode(query):
                raise InvalidQueryError(f"A query must be a non-empty str, got {query!a:.60}.")

        def work(current: OpenCollection) -> list[list[SearchHit]]:
            hits: list[list[SearchHit]] = []
            for start in range(0, len(queries), _QUERIES_PER_SEARCH):
                requests = _requests(current, queries[start : start + _QUERIES_PER_SEARCH], k, candidates, exact)
                found = current.engine.search(requests, k, filter=filter, score_threshold=score_threshold)
                hits.extend([_hit(record.payload, record.score) for record in records] for records in found)
            return hits

        return self._with_current(work)

    def get(self, ids: Iterable[str]) -> list[StoredDocument]:
        """The documents of these ids that exist, in the order asked."""
        wanted = id_list(ids)
        points = [point_id(one) for one in wanted]
        records = self._with_current(
            lambda current: current.engine.retrieve(points, with_payload=True, with_vectors=False)
        )
        found = {record.id: StoredDocument.from_payload(record.payload) for record in records}
        return [found[point] for point in points if point in found]

    def count(self, filter: models.Filter | None = None) -> int:
        """How many documents there are, or how many a filter selects."""
        return self._with_current(lambda current: current.engine.count(filter))

    def scroll(self, filter: models.Filter | None = None) -> Iterator[StoredDocument]:
        """All documents, or all that a filter selects, in no particular order."""
        for record in self._records(filter, with_payload=True):
            yield StoredDocument.from_payload(record.payload)

    def ids(self, filter: models.Filter | None = None) -> Iterator[str]:
        """The ids of all documents, or of all that a filter selects."""
        for payload in self.payloads([ID_KEY], filter):
            yield str(payload[ID_KEY])

    def payloads(self, keys: Sequence[str], filter: models.Filter | None = None) -> Iterator[dict[str, Any]]:
        """Chosen payload keys of all documents, or of all that a filter selects, without reading their texts."""
        for record in self._records(filter, with_payload=list(keys)):
            yield record.payload

    def _records(self, filter: models.Filter | None, *, with_payload: bool | list[str]) -> Iterator[Record]:
        """All points; where the collection is migrated meanwhile, the rest of them is read from the new one."""
        last = ""
        while True:
            current, read = self._current, last
            try:
                for record in current.engine.scroll(filter, with_payload=with_payload):
                    if record.id > read:  # of custom shards several may have the same id
                        last = record.id
                        yield record
                return
            except CollectionError as error:
                if not self._replaced(current, error):
                    raise

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
            pooled = current.schema.pool_factor > 1
            found = current.engine.retrieve([point_id(id)], with_payload=True, with_vectors=not pooled)
            if not found:
                raise InvalidDocumentError(f"{current.engine.place} has no document {id!r}.")
            return explain(
                current.encoder,
                query,
                StoredDocument.from_payload(found[0].payload).text,
                dim=current.schema.dim,
                long_documents=current.schema.long_documents,
                document_vectors=found[0].vectors,
                query_vectors=query_vectors,
            )

        return self._with_current(work)


def _requests(
    current: OpenCollection, queries: Sequence[str], k: int, candidates: int | None, exact: bool | None
) -> list[SearchRequest]:
    vectors = current.encoder.query_vectors(queries, current.schema.dim)
    for matrix in vectors:
        if not np.isfinite(matrix).all():
            raise InvalidVectorError("The model gave query vectors that are not finite; check its weights.")
    limit = _candidates(current, k, candidates, exact)
    if limit is None:
        return [SearchRequest(matrix) for matrix in vectors]
    return [
        SearchRequest(matrix, Candidates({stage.name: stage.query(query, matrix) for stage in current.stages}, limit))
        for query, matrix in zip(queries, vectors, strict=True)
    ]


def _candidates(current: OpenCollection, k: int, candidates: int | None, exact: bool | None) -> int | None:
    """How many candidates the first stage is to find; None to rank everything."""
    if candidates is not None:
        candidates = _positive(candidates, "candidates")
    if exact:
        return None
    if current.schema.first_stage == "none":
        if exact is False or candidates is not None:
            raise InvalidQueryError(
                f"{current.engine.place} has no first stage, so MaxSim ranks all its documents. Leave out candidates "
                "and exact, or give it one: migrate(first_stage='hybrid')."
            )
        return None
    auto = exact is None and candidates is None
    if auto and (not current.engine.first_stage_pays or current.size() <= EXACT_UP_TO):
        return None
    return max(candidates or max(CANDIDATES, CANDIDATES_PER_RESULT * k), k)


def _hit(payload: dict[str, Any], score: float) -> SearchHit:
    stored = StoredDocument.from_payload(payload)
    return SearchHit(stored.id, stored.text, stored.metadata, stored.payload, score=score)


def id_list(ids: Iterable[str]) -> list[str]:
    """Ids as a list, checked.

    Raises:
        InvalidDocumentError: One is no string, or a single string is given for a list.
    """
    if isinstance(ids, str):
        raise InvalidDocumentError(f"Give a list of ids, not the single string {ids!r}.")
    listed = list(ids)
    for one in listed:
        if not isinstance(one, str) or not is_unicode(one):
            raise InvalidDocumentError(f"Ids are str, got {type(one).__name__}: {one!a:.60}.")
    return listed


def _positive(value: int, name: str) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 1:
        raise InvalidQueryError(f"{name} must be a positive integer, got {value!r}.")
    return number
