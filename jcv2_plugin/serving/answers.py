"""Errors of a server, and the JSON of its answers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from jcv2_plugin.encoder.protocol import EmbeddingType, ErrorCode


class RefusedError(Exception):
    """A request is answered with an error: an HTTP status, a code for programs, if the protocol has one, and a detail
    for people, which says how to mend it. ``index`` is the position in ``input`` of the text that is wrong.
    """

    def __init__(
        self,
        status: int,
        code: ErrorCode | None,
        detail: str,
        *,
        index: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.index, self.headers = status, code, detail, index, headers

    def response(self) -> Response:
        """Return the answer."""
        body = {"detail": self.detail, "code": self.code, "index": self.index}
        content = to_json({name: value for name, value in body.items() if value is not None})
        return Response(content, self.status, self.headers, "application/json")


def to_json(value: Any) -> bytes:
    """Return JSON in UTF-8. Arrays may stand for lists of numbers; a float32 is written with the digits it needs.

    What is no Unicode, as a client may send it, is shown as question marks.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        if isinstance(value, dict) and isinstance(value.get("detail"), str):
            return orjson.dumps({**value, "detail": value["detail"].encode("utf-8", "replace").decode()})
        raise


def embeddings_of(vectors: NDArray[np.float32], kind: EmbeddingType) -> NDArray[np.float32] | str:
    """Return vectors as JSON shows them: rows of numbers, or base64 of float16 rows, little-endian."""
    if kind == "base64":
        return base64.b64encode(vectors.astype("<f2").tobytes()).decode()
    return np.ascontiguousarray(vectors)
