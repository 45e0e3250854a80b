"""Reading documents of a collection by id, or all of them. Searching is in ``search.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from jcv2_plugin.collection.state import CollectionState, OpenCollection
from jcv2_plugin.documents import StoredDocument, as_list, is_unicode, plain_str, point_id
from jcv2_plugin.engines.base import Record
from jcv2_plugin.errors import CollectionError, InvalidDocumentError
from jcv2_plugin.filters import check_filter

if TYPE_CHECKING:
    from qdrant_client import models


def get(current: OpenCollection, ids: list[str]) -> list[StoredDocument]:
    """Return documents by id, in the given order. Missing ids are skipped."""
    points = [point_id(one) for one in ids]
    records = current.engine.retrieve(points, with_payload=True, with_vectors=False)
    found = {record.id: StoredDocument.from_payload(record.payload) for record in records}
    return [found[point] for point in points if point in found]


def scroll(state: CollectionState, filter: models.Filter | None, *, with_payload: bool | list[str]) -> Iterator[Record]:
    """Iterate over the points. If the collection is migrated meanwhile, continue with the new one."""
    check_filter(filter)
    last = ""
    while True:
        current, read = state.current, last
        try:
            for record in current.engine.scroll(filter, with_payload=with_payload):
                if record.id > read:  # with custom sharding, several shards can contain the same id
                    last = record.id
                    yield record
            return
        except CollectionError as error:
            if not state.replaced(current, error):
                raise


def id_list(ids: Iterable[str]) -> list[str]:
    """Return the ids as a list, after checking them.

    Raises:
        InvalidDocumentError: An id is not a string of valid Unicode, or something else than a list is given.
    """
    listed = as_list(ids, "ids")
    for one in listed:
        if not isinstance(one, str):
            raise InvalidDocumentError(f"Ids are str, got {type(one).__name__}: {one!a:.60}.")
        if not is_unicode(one):
            raise InvalidDocumentError(f"The id {one!a:.60} has lone surrogates, so it is not Unicode.")
    return [plain_str(one) for one in listed]
