"""Conditions on metadata, for Qdrant filters. The adapters and ``jcv2 search --where`` make theirs here.

Qdrant's ``MatchValue`` distinguishes 1 from 1.0, so numbers are compared by ``Range``. That compares as float64, which
cannot tell neighbouring integers of 2**53 or more apart.
"""

from __future__ import annotations

import datetime as dt
import numbers
import re
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel

from jcv2_plugin.documents import MAX_DEPTH, METADATA_KEY, is_unicode, json_value, plain_str
from jcv2_plugin.errors import InvalidDocumentError, InvalidOptionError, InvalidQueryError, UnsupportedFilterError
from jcv2_plugin.lazy import models

_PLAIN_NAME = re.compile(r"[\w-]+")
_PLAIN_PATH = re.compile(r"[\w-]+(\[\d*\])*(\.[\w-]+(\[\d*\])*)*")
_STEP = r'(?:[\w-]+|"[^"\\]*")(?:\[\d*\])*'
_PAYLOAD_KEY = re.compile(rf"{_STEP}(?:\.{_STEP})*")
_ISO_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_EXACT_BELOW = 2**53
_FINER_THAN_MICROSECONDS = re.compile(r"\.\d{6}\d*[1-9]")

Bound = Literal["gt", "gte", "lt", "lte"]


def metadata_path(names: Sequence[object]) -> str:
    """Return the payload path of nested metadata. Names are literal: a dot or a space in one is part of it."""
    if len(names) > MAX_DEPTH:
        raise UnsupportedFilterError(f"A filter is nested more than {MAX_DEPTH} levels deep. Flatten the metadata.")
    return ".".join([METADATA_KEY, *(_quoted(name) for name in names)])


def metadata_paths(key: str) -> list[str]:
    """Return the payload paths that a key may mean: the entry of this whole name, then a path into nested metadata."""
    literal = metadata_path([key])
    key = plain_str(key)
    path = f"{METADATA_KEY}.{key}"
    if not _PLAIN_PATH.fullmatch(key):
        names = key.split(".")
        path = metadata_path(names) if all(names) and len(names) <= MAX_DEPTH else literal
    return list(dict.fromkeys([literal, path]))


def check_payload_key(key: str) -> None:
    """Raise InvalidOptionError for what is no path of names, such as ``metadata.topic`` or ``metadata."a name"``."""
    if not isinstance(key, str) or not _PAYLOAD_KEY.fullmatch(key):
        raise InvalidOptionError(
            f"{key!r:.200} is not a payload key. Write it as metadata.topic, and names with other characters than "
            """letters, digits, _ and - in quotation marks: metadata."the topic". Names cannot contain " or \\."""
        )


def _quoted(name: object) -> str:
    if isinstance(name, numbers.Integral) and not isinstance(name, bool):
        name = str(int(name))  # as metadata stores it
    if not isinstance(name, str) or not name or not is_unicode(name) or '"' in name or "\\" in name:
        raise UnsupportedFilterError(
            f"Filter on {name!r:.200}: a key must be a non-empty str without quotation marks and backslashes, which "
            "Qdrant's paths cannot contain. Such metadata is stored and returned. To filter by it, store it under "
            "another key."
        )
    name = plain_str(name)
    return name if _PLAIN_NAME.fullmatch(name) else f'"{name}"'


def equals(path: str, value: Any) -> models.FieldCondition:
    """Match a string, number or boolean. 2024 and 2024.0 are equal. Of a list, one element must match.

    Other values are compared in the form in which metadata stores them: a date as its ISO string.
    """
    plain = _stored(path, value)
    if isinstance(plain, (int, float)) and not isinstance(plain, bool):
        if abs(plain) < _EXACT_BELOW:
            return models.FieldCondition(key=path, range=models.Range(gte=plain, lte=plain))
        if isinstance(plain, float):
            raise _inexact(path, plain)
    return models.FieldCondition(key=path, match=models.MatchValue(value=plain))


def compares(path: str, bound: Bound, value: Any) -> models.FieldCondition:
    """Match numbers, or dates, above or below a value."""
    plain = _stored(path, value)
    if isinstance(plain, bool):
        raise UnsupportedFilterError(f"Filter on {path!r}: comparisons take a number or a date, got {plain}.")
    if isinstance(plain, str):
        return models.FieldCondition(key=path, range=models.DatetimeRange(**{bound: _moment(path, plain)}))
    if abs(plain) >= _EXACT_BELOW:
        raise _inexact(path, plain)
    return models.FieldCondition(key=path, range=models.Range(**{bound: plain}))


def check_filter(filter: models.Filter | None) -> None:
    """Refuse what is no Qdrant filter (InvalidQueryError), too deep, or has invalid keys (UnsupportedFilterError)."""
    if filter is not None and not isinstance(filter, models.Filter):
        raise InvalidQueryError(f"filter must be a qdrant_client.models.Filter, got {type(filter).__name__}.")
    _check_conditions(filter, MAX_DEPTH)


def _check_conditions(part: Any, levels: int) -> None:
    """Check the keys of a filter or of a part of one, since engines differ in what they say of invalid ones."""
    if isinstance(part, list):
        for one in part:
            _check_conditions(one, levels)
    if not isinstance(part, BaseModel):
        return
    if isinstance(part, models.Filter) and (levels := levels - 1) < 0:
        raise UnsupportedFilterError(f"The filter is nested more than {MAX_DEPTH} levels deep. Flatten it.")
    if isinstance(key := getattr(part, "key", None), str):
        try:
            check_payload_key(key)
        except InvalidOptionError as error:
            raise UnsupportedFilterError(f"The filter cannot be used: {error}") from None
    for value in vars(part).values():
        _check_conditions(value, levels)


def _stored(path: str, value: Any) -> str | float:
    try:
        plain = json_value(value, path)
    except InvalidDocumentError:
        plain = None
    if not isinstance(plain, (str, int, float)):
        raise UnsupportedFilterError(
            f"Filter on {path!r}: a value must be a str, int, float, bool or date, got {value!r:.60}. For other "
            f"conditions, write a qdrant_client.models.Filter on {path!r}."
        )
    return plain


def _moment(path: str, value: str) -> dt.datetime:
    if _ISO_DATE.match(value) and _FINER_THAN_MICROSECONDS.search(value):
        raise UnsupportedFilterError(
            f"Filter on {path!r}: Qdrant compares times to the microsecond, got {value!r:.60}. Round it."
        )
    try:
        if _ISO_DATE.match(value):
            return dt.datetime.fromisoformat(re.sub("[Zz]$", "+00:00", value))
    except ValueError:
        pass
    raise UnsupportedFilterError(
        f"Filter on {path!r}: comparisons take a number, or a date in ISO format such as '2024-05-31' or "
        f"'2024-05-31T12:00:00Z', got {value!r:.60}."
    )


def _inexact(path: str, value: float) -> UnsupportedFilterError:
    return UnsupportedFilterError(
        f"Filter on {path!r}: Qdrant compares numbers as float64, which is not exact for {value!r} and others of 2**53 "
        "or more. Store a smaller number (seconds instead of nanoseconds) or an ISO date. To compare as floats anyway, "
        "write a qdrant_client.models.Filter."
    )
