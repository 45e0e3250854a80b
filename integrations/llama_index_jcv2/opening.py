"""Create collections with the payload index that LlamaIndex needs."""

from __future__ import annotations

from typing import Any

from jcv2_plugin import ColbertCollection
from jcv2_plugin.collection import opening
from llama_index_jcv2.nodes import SOURCE_KEY


def create_collection(**options: Any) -> ColbertCollection:
    """Create a collection with a payload index on source documents, in memory if no location is given."""
    # Deleting, updating and refreshing look up source documents.
    options["payload_indexes"] = {SOURCE_KEY: "keyword", **(options.get("payload_indexes") or {})}
    return opening.create_collection(**options)
