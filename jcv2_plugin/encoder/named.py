"""Load an encoder by its name, wherever it runs. Imports torch only for a model that runs here."""

from __future__ import annotations

import os
from typing import Any

from jcv2_plugin.encoder.base import Encoder
from jcv2_plugin.encoder.remote import RemoteEncoder, is_remote


def load_encoder(name: str | os.PathLike[str], **options: Any) -> Encoder:
    """Load a model by name or from a folder, or connect to one on a server.

    Args:
        name: As for ``JinaColbertEncoder.from_pretrained``; ``"https://host:8080"`` or ``"https://host:8080#model"``
            for a server; or ``"jina-api:jina-colbert-v2"`` for Jina's API.
        **options: Keyword arguments of ``JinaColbertEncoder.from_pretrained``. For a server, those that it decides
            (``device``, ...) must be None.
    """
    if is_remote(name):
        return RemoteEncoder.from_reference(os.fspath(name), **options)
    from jcv2_plugin.encoder.model import JinaColbertEncoder

    return JinaColbertEncoder.from_pretrained(name, **options)
