"""Validate texts, queries and vectors before they are written, searched or ranked."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, ValidationInfo

from jcv2_plugin.documents import Document, has_text, is_several, is_unicode
from jcv2_plugin.errors import (
    InvalidDocumentError,
    InvalidOptionError,
    InvalidQueryError,
    InvalidVectorError,
    UnknownDimError,
)

_BATCH_CHARACTERS = 1_000_000
"""Maximum characters per batch, unless a single document has more. Several copies of a batch's token vectors are in
memory at the same time."""


def check_vectors(matrix: NDArray[np.float32], dim: int, what: str) -> None:
    """Raise InvalidVectorError for token vectors that are not finite or not of shape ``(tokens, dim)``, and
    InvalidDocumentError for none. ``what`` names the document.
    """
    if matrix.ndim != 2 or matrix.shape[1] != dim:
        raise InvalidVectorError(f"{what}: expected vectors of shape (tokens, {dim}), got {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise InvalidVectorError(
            f"{what}: the model gave vectors that are not finite. Load it in another dtype (float32 or bfloat16 "
            "for float16), or check its weights. Nothing of this batch was written."
        )
    if matrix.shape[0] == 0:
        raise InvalidDocumentError(
            f"{what}: no token is left to score: the text holds only what the skip list leaves out."
        )


def check_query(query: str) -> None:
    """Raise InvalidQueryError for a query that is blank, not a string, or not valid Unicode."""
    if not isinstance(query, str) or not has_text(query):
        raise InvalidQueryError(f"A query must be a non-empty str, got {query!r:.60}.")
    if not is_unicode(query):
        raise InvalidQueryError(f"The query has lone surrogates, so it is not Unicode: {query!a:.60}. Decode it again.")


def check_integer(value: Any, name: str, error: type[ValueError] = InvalidOptionError, least: int = 1) -> int:
    """Return an integer of ``least`` or more, of Python or numpy, as Python's. Others, as bools, raise ``error``."""
    try:
        number = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        kind = "a positive integer" if least == 1 else f"an integer of {least} or more"
        raise error(f"{name} must be {kind}, got {value!r:.60}.")
    return number


def check_positive(value: Any, name: str, error: type[ValueError] = InvalidQueryError) -> int:
    """Return a positive integer below 2**31 as :func:`check_integer` does."""
    number = check_integer(value, name, error)
    if number >= 2**31:  # engines handle larger values differently
        raise error(f"{name} must be below 2**31, got {value!r:.60}.")
    return number


def check_number(value: Any, name: str, error: type[ValueError] = InvalidQueryError) -> float:
    """Return a number of Python or numpy as a float. A bool, a str and NaN raise ``error``."""
    # numbers.Real includes numpy's scalars
    number = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            number = float(value)
    if math.isnan(number):
        raise error(f"{name} must be a number, got {value!r:.60}.")
    return number


def as_dims(dim: int | Iterable[int]) -> tuple[int, ...]:
    """Return one or several dimensions as a tuple of ints. Raises UnknownDimError unless they are positive integers."""
    try:
        return tuple(check_integer(one, "dim") for one in (dim if isinstance(dim, Iterable) else (dim,)))
    except InvalidOptionError:
        raise UnknownDimError(f"dim must be a positive integer, or several of them, got {dim!r:.60}.") from None


def check_pool_factor(value: Any) -> float:
    """Return a token pooling factor as a float. Raises InvalidOptionError unless it is from 1 to 100."""
    factor = math.nan
    with suppress(InvalidOptionError):
        factor = check_number(value, "pool_factor", InvalidOptionError)
    if not 1 <= factor < 100:
        raise InvalidOptionError(f"pool_factor must be a number from 1 (no pooling) to 100, got {value!r:.60}.")
    return factor


def check_flag(value: Any, name: str) -> bool:
    """Return a bool, of Python or numpy, as Python's. Raises InvalidQueryError for anything else."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidQueryError(f"{name} must be True or False, got {value!r:.60}.")
    return bool(value)


# Fields of the adapters' classes. Pydantic alone would take "3" and True for numbers.
Positive = Annotated[int, BeforeValidator(lambda value, info: check_positive(value, _name_of(info)))]
"""A positive integer, which may be one of numpy's."""
Flag = Annotated[bool, BeforeValidator(lambda value, info: check_flag(value, _name_of(info)))]
"""A bool, which may be one of numpy's."""


def _name_of(info: ValidationInfo) -> str:
    return info.field_name or "the value"


def check_query_vectors(vectors: list[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return the query vectors unchanged. Raises InvalidVectorError unless all are finite."""
    if not all(np.isfinite(matrix).all() for matrix in vectors):
        raise InvalidVectorError("The model gave query vectors that are not finite; check its weights.")
    return vectors


def in_batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of ``size`` items; the last one may be shorter. The iterable is consumed one batch at a time."""
    size = check_positive(size, "batch_documents", InvalidOptionError)
    if not is_several(items):
        raise InvalidDocumentError(f"Give an iterable of documents, not {items!r:.60} of type {type(items).__name__}.")
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def cut_by_length(batches: Iterable[list[Any]]) -> Iterator[list[Any]]:
    """Split batches of texts or documents that have too many characters."""
    for batch in batches:
        part: list[Any] = []
        characters = 0
        for item in batch:
            text = item.text if isinstance(item, Document) else item
            length = len(text) if isinstance(text, str) else 0
            if part and characters + length > _BATCH_CHARACTERS:
                yield part
                part, characters = [], 0
            part.append(item)
            characters += length
        yield part
