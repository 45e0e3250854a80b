"""Async versions of the collection methods.

They run in threads, so that the event loop is not blocked while a model encodes or a server responds. Qdrant Edge
holds the GIL during each of its calls and blocks the loop for that time, so long operations are split into many calls.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from qdrant_client import models

from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS, IngestReport
from jcv2_plugin.documents import Document, SearchHit, StoredDocument
from jcv2_plugin.engines.base import Matrix
from jcv2_plugin.engines.first_stage import FirstStage

if TYPE_CHECKING:
    from jcv2_plugin.collection.read import Reading
    from jcv2_plugin.collection.search import Searching
    from jcv2_plugin.collection.write import Writing
    from jcv2_plugin.scoring.explanation import Explanation

    class _Collection(Writing, Searching, Reading): ...
else:
    _Collection = object

_PAGE = 256

T = TypeVar("T")


class AsyncMethods(_Collection):
    """Async methods of a collection. Each ``a...`` method takes the same arguments as its synchronous counterpart."""

    async def aadd(
        self,
        texts: Iterable[str | Document],
        *,
        ids: Sequence[str | None] | None = None,
        metadata: Sequence[Mapping[str, Any] | None] | None = None,
    ) -> list[str]:
        """See :meth:`add`."""
        return await asyncio.to_thread(self.add, texts, ids=ids, metadata=metadata)

    async def aingest(
        self,
        documents: Iterable[str | Document],
        *,
        batch_documents: int = BATCH_DOCUMENTS,
        progress: Callable[[int], None] | None = None,
        journal: str | os.PathLike[str] | None = None,
        workers: int | Sequence[str] = 0,
    ) -> IngestReport:
        """See :meth:`ingest`. The iterable and ``progress`` run in a different thread from the event loop."""
        return await asyncio.to_thread(
            self.ingest,
            documents,
            batch_documents=batch_documents,
            progress=progress,
            journal=journal,
            workers=workers,
        )

    async def adelete(self, ids: Iterable[str] | None = None, *, filter: models.Filter | None = None) -> None:
        """See :meth:`delete`."""
        await asyncio.to_thread(self.delete, ids, filter=filter)

    async def asearch(
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
        """See :meth:`search`."""
        return await asyncio.to_thread(
            self.search,
            query,
            k,
            filter=filter,
            score_threshold=score_threshold,
            candidates=candidates,
            exact=exact,
            first_stage=first_stage,
            with_explanation=with_explanation,
        )

    async def asearch_many(
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
        """See :meth:`search_many`."""
        return await asyncio.to_thread(
            self.search_many,
            queries,
            k,
            filter=filter,
            score_threshold=score_threshold,
            candidates=candidates,
            exact=exact,
            first_stage=first_stage,
            with_explanation=with_explanation,
        )

    async def asearch_mmr(
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
        """See :meth:`search_mmr`."""
        return await asyncio.to_thread(
            self.search_mmr,
            query,
            k,
            fetch_k=fetch_k,
            lambda_mult=lambda_mult,
            filter=filter,
            score_threshold=score_threshold,
            candidates=candidates,
            exact=exact,
            first_stage=first_stage,
            with_explanation=with_explanation,
        )

    async def aget(self, ids: Iterable[str]) -> list[StoredDocument]:
        """See :meth:`get`."""
        return await asyncio.to_thread(self.get, ids)

    async def acount(self, filter: models.Filter | None = None) -> int:
        """See :meth:`count`."""
        return await asyncio.to_thread(self.count, filter)

    async def aexplain(self, query: str, id: str, *, query_vectors: Matrix | None = None) -> Explanation:
        """See :meth:`explain`."""
        return await asyncio.to_thread(self.explain, query, id, query_vectors=query_vectors)

    async def ascroll(self, filter: models.Filter | None = None) -> AsyncIterator[StoredDocument]:
        """See :meth:`scroll`."""
        documents = self.scroll(filter)
        while page := await asyncio.to_thread(_take, documents, _PAGE):
            for document in page:
                yield document


def _take(items: Iterator[T], most: int) -> list[T]:
    return list(itertools.islice(items, most))
