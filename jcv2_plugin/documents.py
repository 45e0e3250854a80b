"""Documents, stored documents and search hits."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import math
import numbers
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set, ValuesView
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from jcv2_plugin.errors import InvalidDocumentError, InvalidOptionError

if TYPE_CHECKING:
    # Imports the tokenizers, which are not needed for reading or deleting.
    from jcv2_plugin.scoring.explanation import Explanation

logger = logging.getLogger(__name__)

T = TypeVar("T")

OnBlank = Literal["skip", "error"]
"""What to do with a document without text: leave it out with a warning, or refuse the call."""

MAX_DEPTH = 32
"""How many levels of dicts and lists metadata and filters may have. The metadata dict is the first."""

TEXT_KEY = "page_content"
METADATA_KEY = "metadata"
ID_KEY = "_id"
HASH_KEY = "_hash"
"""Payload keys. The first two are those of langchain-qdrant, so that it can read our payloads."""

# White space, control characters, and what Unicode lets a renderer ignore: zero-width characters, BOMs, soft hyphens,
# marks of direction, variation selectors, and blanks that are letters or symbols by category.
VISIBLE = re.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    r"\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    # As characters, since JSON Schema, which jcv2 serve describes its requests in, has no such escapes.
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Finds a character that is visible, see :func:`has_text`."""

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pypi.org/project/jcv2-plugin/")


def point_id(document_id: str) -> str:
    """Return the Qdrant point id of a document, a version 5 UUID of its id. Qdrant does not accept other strings."""
    return str(uuid.uuid5(_NAMESPACE, document_id))


@dataclass(frozen=True)
class Document:
    """A text with its id and metadata.

    Attributes:
        id: Any non-empty string. If None, a random id is generated when the document is added.
        text: Text to encode and search.
        metadata: Metadata, stored as JSON; filters refer to it as ``metadata.<key>``.
        payload: Additional top-level payload keys, for integrations with their own payload layout.
    """

    text: str
    id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredDocument:
    """A document read from a collection; ``payload`` is the complete stored payload."""

    id: str
    text: str
    metadata: dict[str, Any]
    payload: dict[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def from_payload(cls, payload: Mapping[str, Any] | None) -> StoredDocument:
        """Build a stored document from a payload in our layout."""
        payload = dict(payload or {})
        return cls(
            id=str(payload.get(ID_KEY, "")),
            text=str(payload.get(TEXT_KEY, "")),
            metadata=dict(payload.get(METADATA_KEY) or {}),
            payload=payload,
        )

    def as_document(self) -> Document:
        """Return the document as it was added. Adding it to another collection stores the same payload."""
        ours = {TEXT_KEY, METADATA_KEY, ID_KEY, HASH_KEY}
        rest = {key: value for key, value in self.payload.items() if key not in ours}
        return Document(self.text, self.id, self.metadata, rest)


@dataclass(frozen=True)
class SearchHit(StoredDocument):
    """A search result.

    Attributes:
        score: MaxSim score: the sum over query tokens of the largest dot product with a document token. At most the
            number of query vectors.
        query_vectors: Number of query vectors.
        explanation: Token matches, if the search was called with ``with_explanation=True``.
    """

    score: float = 0.0
    query_vectors: int = 0
    explanation: Explanation | None = field(default=None, repr=False, compare=False)

    @property
    def relevance(self) -> float:
        """The score divided by the number of query vectors, between 0 and 1.

        This is the mean cosine similarity of each query vector with its best match. It makes hits of queries of
        different lengths comparable, so that one threshold works for all of them. It is clipped to 0 and 1, because
        rounding in storage can lift it slightly above 1, and vectors with negative similarity push it below 0.
        """
        return relevance_of(self.score, self.query_vectors)


def relevance_of(score: float, query_vectors: int) -> float:
    """Compute :attr:`SearchHit.relevance`; 0 for a query without vectors."""
    return min(max(score / query_vectors, 0.0), 1.0) if query_vectors else 0.0


def as_documents(
    texts: Iterable[str | Document],
    ids: Iterable[str | None] | None = None,
    metadata: Iterable[Mapping[str, Any] | None] | None = None,
) -> list[Document]:
    """Combine texts, ids and metadata into documents. Raises InvalidDocumentError if their lengths differ, a single
    text is given instead of a list, or ids or metadata are given for a :class:`Document`, which has its own.
    """
    items = as_list(texts, "texts")
    columns: list[list[Any]] = []
    for name, values in (("ids", ids), ("metadata", metadata)):
        if values is not None and not is_several(values):
            raise InvalidDocumentError(f"{name} must be a list with an entry for each text, got {values!r:.60}.")
        columns.append([None] * len(items) if values is None else list(values))
        if len(columns[-1]) != len(items):
            raise InvalidDocumentError(f"There are {len(items)} texts but {len(columns[-1])} {name}.")
    documents: list[Document] = []
    for item, id, own in zip(items, *columns, strict=True):
        if isinstance(item, Document) and (id is not None or own is not None):
            raise InvalidDocumentError(
                f"Document {len(documents)} has an id and metadata of its own. Leave out ids and metadata, or give its "
                "text."
            )
        documents.append(item if isinstance(item, Document) else Document(item, id, {} if own is None else own))
    return documents


def is_several(values: object) -> bool:
    """Return whether a value is an iterable of texts or documents: not a single one, and not a dict or a table."""
    return (
        isinstance(values, Iterable)
        and not isinstance(values, (str, bytes, Mapping, BaseModel))  # the frameworks' documents are models
        and getattr(values, "ndim", 1) == 1
    )


def as_list(values: Iterable[T], what: str, error: type[ValueError] = InvalidDocumentError) -> list[T]:
    """Return an iterable, such as a generator, as a list of ``what``. Others, as a single text, raise ``error``."""
    if not is_several(values):
        raise error(f"Give a list of {what}, not {values!r:.60} of type {type(values).__name__}.")
    return list(values)


def id_list(ids: Iterable[str]) -> list[str]:
    """Return the ids as a list. Raises InvalidDocumentError unless all are strings of valid Unicode."""
    listed = as_list(ids, "ids")
    for one in listed:
        if not isinstance(one, str):
            raise InvalidDocumentError(f"Ids are str, got {type(one).__name__}: {one!a:.60}.")
        if not is_unicode(one):
            raise InvalidDocumentError(f"The id {one!a:.60} has lone surrogates, so it is not Unicode.")
    return [plain_str(one) for one in listed]


def list_of(kind: type, values: Iterable[T], one: str, called: str, way_out: str) -> list[T]:
    """Return an iterable as a list, like :func:`as_list`, if all in it are of a class.

    Args:
        kind: The class.
        values: The iterable.
        one: What it holds, such as ``"Document"``, ``called`` for what it must be, such as ``"LangChain Document"``.
        called: See ``one``.
        way_out: What to do instead, as a sentence.
    """
    listed = as_list(values, f"{one.lower()}s")
    for position, value in enumerate(listed):
        if not isinstance(value, kind):
            raise InvalidDocumentError(
                f"{one} {position} must be a {called}, got {type(value).__name__}: {value!r:.60}. {way_out}"
            )
    return listed


def has_text(text: str) -> bool:
    """Return whether a text has a visible character, so that it can be searched.

    White space, control characters and zero-width characters (U+200B, a BOM, NUL, a soft hyphen) are not visible.
    Punctuation is.
    """
    return VISIBLE.search(text) is not None


def accepted(
    documents: Sequence[Document], on_blank: OnBlank = "skip", start: int = 0
) -> tuple[list[Document], list[str]]:
    """Check documents before anything is encoded or written, and assign random ids to those without one.

    ``start`` is the position of the first one, for error messages. Returns the documents as they are stored, and the
    ids (or positions) of those left out because they have no text. Raises InvalidDocumentError for one that cannot be
    stored, an id that comes twice, or a blank text with ``on_blank="error"``.
    """
    if on_blank not in get_args(OnBlank):
        raise InvalidOptionError(f"on_blank must be one of {get_args(OnBlank)}, got {on_blank!r}.")
    kept: list[Document] = []
    blank: list[str] = []
    seen: set[str] = set()
    for position, document in enumerate(documents, start):
        if on_blank == "skip" and isinstance(document.text, str) and not has_text(document.text):
            blank.append(str(document.id or f"number {position}"))
            continue
        where = f"Document {position}" + (f" (id {document.id!r})" if document.id else "")
        stored = checked(document, where)
        if stored.id in seen:
            raise InvalidDocumentError(f"{where}: this id comes twice in one call. Ids must be distinct.")
        seen.add(str(stored.id))
        kept.append(stored)
    return kept, blank


def warn_of_blank(ids: Sequence[str]) -> None:
    """Log which documents were left out because they have no text, if any."""
    if ids:
        logger.warning("%s on_blank='error' refuses them.", left_out(ids))


def left_out(ids: Sequence[str]) -> str:
    """Say which documents were left out because they have no text."""
    names = ", ".join(ids[:20]) + (", ..." if len(ids) > 20 else "")
    return f"Left out {len(ids)} document{'s' if len(ids) > 1 else ''} without text: {names}."


def checked(document: Document, where: str, *, is_stored: bool = False) -> Document:
    """Return a document as it is stored: with an id, and its metadata and payload as JSON. ``where`` names it in
    errors.

    With ``is_stored``, texts of invisible characters only are allowed, which version 0.1 stored. Raises
    InvalidDocumentError if it cannot be stored.
    """
    check_text(document.text, where)
    if not (document.text.strip() if is_stored else has_text(document.text)):
        raise InvalidDocumentError(f"{where}: the text is empty. Leave such documents out.")
    id = document.id
    if id is not None and (not isinstance(id, str) or not id):
        raise InvalidDocumentError(f"{where}: the id must be a non-empty str, got {id!r:.60}.")
    if id is not None and not is_unicode(id):
        raise InvalidDocumentError(f"{where}: the id has lone surrogates, so it is not Unicode.")
    metadata = _json_dict(document.metadata, f"{where}: metadata")
    payload = _json_dict(document.payload, f"{where}: payload")
    return Document(plain_str(document.text), plain_str(id or uuid.uuid4().hex), metadata, payload)


def check_text(text: str, where: str) -> None:
    """Raise InvalidDocumentError for a text that is not a str of valid Unicode."""
    if not isinstance(text, str):
        raise InvalidDocumentError(f"{where}: the text must be a str, got {type(text).__name__}: {text!r:.60}.")
    if not is_unicode(text):
        raise InvalidDocumentError(f"{where}: the text has lone surrogates, so it is not Unicode. Decode it again.")


def _json_dict(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidDocumentError(f"{where} must be a dict, got {type(value).__name__}: {value!r:.60}.")
    found: dict[str, Any] = json_value(value, where)
    return found


def json_value(value: Any, where: str, depth: int = MAX_DEPTH) -> Any:
    """Return metadata as JSON stores it. ``where`` names it in errors.

    Numbers of numpy and pandas become Python's; tuples, sets and arrays become lists; dates, times, UUIDs, decimals,
    paths and integer keys become strings (dates in ISO format), as Qdrant's client writes them. Raises
    InvalidDocumentError for a value that JSON or Qdrant lacks, or more than ``depth`` levels of dicts and lists.
    """
    if isinstance(value, str):
        if not is_unicode(value):
            raise InvalidDocumentError(f"{where} has lone surrogates, so it is not Unicode. Decode the text again.")
        return plain_str(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return _json_number(value, where)
    if isinstance(value, (bytes, bytearray, memoryview, complex, Iterator)):  # pydantic would take them for others
        raise _unknown(value, where)
    if isinstance(value, (Mapping, Sequence, Set, ValuesView)):
        if depth < 1:
            raise InvalidDocumentError(f"{where:.200} is nested more than {MAX_DEPTH} levels deep. Flatten it.")
        if isinstance(value, Mapping):
            return _json_mapping(value, where, depth)
        items = sorted(value, key=repr) if isinstance(value, Set) else value  # of a set, the order changes
        return [json_value(one, f"{where}[{number}]", depth - 1) for number, one in enumerate(items)]
    return _json_other(value, where, depth)


def _json_number(value: float, where: str) -> float:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidDocumentError(
                f"{where} is {value!r}, which cannot be stored as JSON. Leave it out or set it to None."
            )
        return float(value)
    if not -(2**63) <= value < 2**63:
        raise InvalidDocumentError(f"{where}: {value} does not fit 64 bits. Store it as a str.")
    return int(value)


def _json_mapping(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(key, bool) or not isinstance(key, (str, numbers.Integral)):
            raise InvalidDocumentError(f"{where}: key {key!r:.60} is {type(key).__name__}, not str. Rename it.")
        name = json_value(key if isinstance(key, str) else str(key), f"{where}: key {key!a:.60}")
        if name in found:
            raise InvalidDocumentError(f"{where}: key {name!r:.60} comes twice, as str and as int. Rename one.")
        found[name] = json_value(item, f"{where}[{name!r:.60}]", depth - 1)
    return found


def _json_other(value: Any, where: str, depth: int) -> Any:
    """Convert a value that is none of JSON's types."""
    plain = None
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # numpy, which is not imported for this
        plain = _array(value)
    elif isinstance(value, (dt.datetime, dt.timedelta)) and any(
        getattr(value, name, 0) for name in ("nanosecond", "nanoseconds")
    ):  # pandas' types, whose nanoseconds Python's do not have
        plain = re.sub(r"\+00:00$", "Z", value.isoformat())  # type: ignore[union-attr]
    elif isinstance(value, os.PathLike):
        plain = os.fspath(value)
    else:
        with suppress(ValueError, TypeError):  # of what pydantic does not know, and pandas' NaT
            plain = to_jsonable_python(value)
    if plain is None or type(plain) is type(value) or plain == "NaT":
        raise _unknown(value, where)
    return json_value(plain, where, depth)


def _unknown(value: Any, where: str) -> InvalidDocumentError:
    return InvalidDocumentError(
        f"{where} is {value!r:.60} of type {type(value).__name__}, which cannot be stored as JSON. Convert it to a "
        "str (bytes with decode() or base64), a list or a number, or leave it out."
    )


def _array(value: Any) -> Any:
    """Convert an array or a scalar of numpy, pandas or PyTorch."""
    kind = getattr(value.dtype, "kind", "")  # PyTorch's types have none
    if kind not in ("M", "m"):
        return value.tolist()
    if getattr(value, "ndim", 0):
        return list(value)
    text = str(value)
    if text == "NaT":
        return None
    if kind == "m" or "T" in text:  # a time: as Python's, unless that has no such fraction or year
        with suppress(TypeError):
            micro = value.astype(f"{kind}8[us]")
            if micro == value and not isinstance(micro.item(), int):
                return micro.item()
            if kind == "m" and (nano := value.astype("m8[ns]")) == value:
                seconds, rest = divmod(abs(int(nano.astype("int64"))), 10**9)
                return f"{'-' if nano.astype('int64') < 0 else ''}PT{seconds}.{rest:09}S"
    return text


def plain_str(text: str) -> str:
    """Return a str without its subclass. JSON has the value of an Enum, where ``str`` gives the name of its member."""
    return str(text.value) if isinstance(text, Enum) else str(text)


def is_unicode(text: str) -> bool:
    """Return whether a str is valid Unicode. Faulty decoding can leave lone surrogates in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def payload_of(document: Document) -> dict[str, Any]:
    """Return the payload to store with the vectors, including a hash that shows whether the document has changed."""
    payload = {
        **{key: value for key, value in document.payload.items() if key != HASH_KEY},
        TEXT_KEY: document.text,
        METADATA_KEY: dict(document.metadata),
        ID_KEY: document.id,
    }
    canonical = json.dumps(payload, sort_keys=True, ensure_ascii=False)
    payload[HASH_KEY] = hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()
    return payload
