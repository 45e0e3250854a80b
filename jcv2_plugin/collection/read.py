"""Reading from a collection: get, count and scroll. Searching is in ``search.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from qdrant_client import models

from jcv2_plugin.collection.state import CollectionState
from jcv2_plugin.documents import ID_KEY, StoredDocument, is_unicode, point_id
from jcv2_plugin.engines.base import Record
from jcv2_plugin.errors import CollectionError, InvalidDocumentError


class Reading(CollectionState):
    """Read methods of a collection."""

    def __repr__(self) -> str:
        return f"ColbertCollection({self._engine.title!r}, model={self.schema.model!r}, dim={self.dim})"

    def __len__(self) -> int:
        return self.count()

    def get(self, ids: Iterable[str]) -> list[StoredDocument]:
        """Return documents by id, in the given order. Missing ids are skipped."""
        wanted = id_list(ids)
        points = [point_id(one) for one in wanted]
        records = self._with_current(
            lambda current: current.engine.retrieve(points, with_payload=True, with_vectors=False)
        )
        found = {record.id: StoredDocument.from_payload(record.payload) for record in records}
        return [found[point] for point in points if point in found]

    def count(self, filter: models.Filter | None = None) -> int:
        """Return the number of documents, or of those that match a filter."""
        return self._with_current(lambda current: current.engine.count(filter))

    def scroll(self, filter: models.Filter | None = None) -> Iterator[StoredDocument]:
        """Iterate over all documents, or those that match a filter, in no particular order."""
        for record in self._records(filter, with_payload=True):
            yield StoredDocument.from_payload(record.payload)

    def ids(self, filter: models.Filter | None = None) -> Iterator[str]:
        """Iterate over the ids of all documents, or of those that match a filter."""
        for payload in self.payloads([ID_KEY], filter):
            yield str(payload[ID_KEY])

    def payloads(self, keys: Sequence[str], filter: models.Filter | None = None) -> Iterator[dict[str, Any]]:
        """Iterate over selected payload keys of all documents, or of those that match a filter.

        Texts are not read unless selected.
        """
        for record in self._records(filter, with_payload=list(keys)):
            yield record.payload

    def _records(self, filter: models.Filter | None, *, with_payload: bool | list[str]) -> Iterator[Record]:
        """Iterate over the points. If the collection is migrated meanwhile, continue with the new one."""
        last = ""
        while True:
            current, read = self._current, last
            try:
                for record in current.engine.scroll(filter, with_payload=with_payload):
                    if record.id > read:  # with custom sharding, several shards can contain the same id
                        last = record.id
                        yield record
                return
            except CollectionError as error:
                if not self._replaced(current, error):
                    raise


def id_list(ids: Iterable[str]) -> list[str]:
    """Return the ids as a list, after checking them.

    Raises:
        InvalidDocumentError: An id is not a string, or a single string is given instead of a list.
    """
    if isinstance(ids, str):
        raise InvalidDocumentError(f"Give a list of ids, not the single string {ids!r}.")
    listed = list(ids)
    for one in listed:
        if not isinstance(one, str) or not is_unicode(one):
            raise InvalidDocumentError(f"Ids are str, got {type(one).__name__}: {one!a:.60}.")
    return listed
