"""Load an encoder by its name, wherever it runs. Imports torch only for a model that runs here."""

from __future__ import annotations

import os
from typing import Any

from jcv2_plugin.encoder.base import Encoder
from jcv2_plugin.encoder.remote import RemoteEncoder, is_remote


def load_encoder(name: str | os.PathLike[str], **options: Any) -> Encoder:
    """Load a model by name or from a folder, or connect to one on a server.

    ``name`` is as for ``JinaColbertEncoder.from_pretrained``, or ``"https://host:8080"``, ``"https://host:8080#model"``
    or ``"jina-api:jina-colbert-v2"``. Options are those of ``from_pretrained``; those that a server decides
    (``device``, ...) must be None for it.
    """
    if is_remote(name):
        return RemoteEncoder.from_reference(os.fspath(name), **options)
    from jcv2_plugin.encoder.model import JinaColbertEncoder

    return JinaColbertEncoder.from_pretrained(name, **options)
