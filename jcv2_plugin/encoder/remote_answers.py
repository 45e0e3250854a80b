"""Check what a server of encoders answers. Whatever is wrong is found here, before anything is stored."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from jcv2_plugin.encoder.protocol import EmbeddingType, ModelEntry, ModelList
from jcv2_plugin.encoder.scored_tokens import ScoredToken

_ROUNDING = 0.02
"""How far a row's length may be from 1. bfloat16 and float16 round it by less."""


class WrongAnswer(ValueError):
    """An answer that does not fit the request. The text says why."""


def models_of(body: Any) -> list[ModelEntry]:
    """Return the models of an answer of ``/v1/models``. The first of their dimensions is the default."""
    try:
        found = ModelList.model_validate(body).data
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = f" has the {first['loc'][2]} {first['input']!a:.60}" if len(first["loc"]) > 2 else ""
        raise WrongAnswer(f"its list of models{where}: {first['msg']:.200}") from error
    for one in found:
        one.dims = sorted(one.dims or [], key=lambda dim: dim != one.default_dim)
    return found


def items_of(body: Any, count: int) -> list[dict[str, Any]]:
    """Return the items of an answer in the order of the texts."""
    items = body.get("data") if isinstance(body, dict) else None
    if not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
        raise WrongAnswer("it has no list 'data'")
    if len(items) != count:
        raise WrongAnswer(f"{len(items)} items for {count} texts")
    by_index: dict[Any, dict[str, Any]] = {one["index"]: one for one in items if type(one.get("index")) is int}
    if by_index.keys() != set(range(count)):
        raise WrongAnswer(f"the items have other indices than 0 to {count - 1}")
    return [by_index[index] for index in range(count)]


def rows_of(item: Mapping[str, Any], dim: int, kind: EmbeddingType, *, pooled: bool) -> NDArray[np.float32]:
    """Return the vectors of an item, of shape ``(rows, dim)``. ``pooled`` rows are means, which are shorter than 1."""
    what, given = f"text {item['index']}", item.get("embeddings")
    matrix = _from_base64(given, dim, what) if kind == "base64" else _from_lists(given, dim, what)
    if not np.isfinite(matrix).all():
        raise WrongAnswer(f"{what} has vectors that are not finite (NaN or infinite)")
    lengths = np.linalg.norm(matrix, axis=1)
    if (lengths > 1 + _ROUNDING).any() or (not pooled and (lengths < 1 - _ROUNDING).any()):
        worst = lengths[np.abs(lengths - 1).argmax()]
        raise WrongAnswer(f"{what} has vectors that are not of length 1, but of {worst:.3g}")
    return matrix


def _from_base64(given: Any, dim: int, what: str) -> NDArray[np.float32]:
    if not isinstance(given, str):
        raise WrongAnswer(f"{what} has no base64 text of vectors")
    try:
        content = base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError) as error:
        raise WrongAnswer(f"{what} has vectors that are no base64 ({error})") from error
    if len(content) % (2 * dim):
        raise WrongAnswer(f"{what} has {len(content) // 2} numbers, which are no rows of dim={dim}")
    return np.frombuffer(content, "<f2").reshape(-1, dim).astype(np.float32)


def _from_lists(given: Any, dim: int, what: str) -> NDArray[np.float32]:
    if not isinstance(given, list) or not all(isinstance(row, list) for row in given):
        raise WrongAnswer(f"{what} has no list of vectors")
    if any(len(row) != dim for row in given):
        wrong = next(len(row) for row in given if len(row) != dim)
        raise WrongAnswer(f"{what} has vectors of dim={wrong}, asked for was dim={dim}")
    try:
        matrix = np.array(given).reshape(len(given), dim)
    except (ValueError, OverflowError) as error:
        raise WrongAnswer(f"{what} has vectors of other things than numbers ({error})") from error
    if matrix.size and matrix.dtype.kind not in "fiu":
        raise WrongAnswer(f"{what} has vectors of other things than numbers")
    with np.errstate(over="ignore"):  # too large becomes infinite, which is refused
        return matrix.astype(np.float32)


def ids_of(item: Mapping[str, Any]) -> list[int]:
    """Return the token ids of an item."""
    ids = item.get("ids")
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < 2**32 for one in ids):
        raise WrongAnswer(f"text {item['index']} has no list 'ids' of token ids")
    return ids


def tokens_of(item: Mapping[str, Any], text: str) -> list[ScoredToken]:
    """Return the tokens of an item's rows."""
    tokens = item.get("tokens")
    found = []
    for one in tokens if isinstance(tokens, list) else [None]:
        if not (isinstance(one, list) and len(one) == 3 and isinstance(one[0], str)):
            raise WrongAnswer(f"text {item['index']} has no list 'tokens' of [token, start, end]")
        token, start, end = one
        if not (type(start) is int and type(end) is int and 0 <= start <= end <= len(text)):
            raise WrongAnswer(f"text {item['index']} has a token at {start!r:.20} to {end!r:.20}, outside of the text")
        found.append(ScoredToken(token, start, end))
    return found
