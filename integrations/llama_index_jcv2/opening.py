"""Collections as LlamaIndex needs them."""

from __future__ import annotations

from typing import Any

from jcv2_plugin import ColbertCollection
from jcv2_plugin.collection import opening
from llama_index_jcv2.nodes import SOURCE_KEY


def create_collection(**options: Any) -> ColbertCollection:
    """A new collection, in memory if no location is given, with an index of source documents.

    Args:
        **options: Those of ``ColbertCollection.create``, ``location`` included.
    """
    # Source documents are looked up whenever one is deleted, updated or refreshed.
    options["payload_indexes"] = {SOURCE_KEY: "keyword", **(options.get("payload_indexes") or {})}
    return opening.create_collection(**options)
