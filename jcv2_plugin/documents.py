"""Documents, stored documents and search hits."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jcv2_plugin.errors import InvalidDocumentError, UnsupportedFilterError

if TYPE_CHECKING:
    # Imports the tokenizers, which are not needed for reading or deleting.
    from jcv2_plugin.scoring.explanation import Explanation

TEXT_KEY = "page_content"
METADATA_KEY = "metadata"
ID_KEY = "_id"
HASH_KEY = "_hash"
"""Payload keys. The first two are those of langchain-qdrant, so that it can read our payloads."""

_PLAIN_PATH = re.compile(r"[\w-]+(\[\d*\])*(\.[\w-]+(\[\d*\])*)*")
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pypi.org/project/jcv2-plugin/")


def point_id(document_id: str) -> str:
    """Return the Qdrant point id of a document, a version 5 UUID of its id. Qdrant does not accept other strings."""
    return str(uuid.uuid5(_NAMESPACE, document_id))


def metadata_paths(key: str) -> list[str]:
    """Return the payload paths for filters on a metadata key: the key as one name, or a path into nested metadata.

    Raises:
        UnsupportedFilterError: If the key is empty or contains a quotation mark.
    """
    if not key or '"' in key:
        raise UnsupportedFilterError(f"Filter on {key!r}: a key must not be empty or contain a quotation mark.")
    quoted, plain = f'{METADATA_KEY}."{key}"', f"{METADATA_KEY}.{key}"
    if not _PLAIN_PATH.fullmatch(key):
        return [quoted]
    return [quoted, plain] if set(".[") & set(key) else [plain]


@dataclass(frozen=True)
class Document:
    """A text with its id and metadata.

    Attributes:
        id: Any non-empty string. If None, a random id is generated when the document is added.
        text: Text to encode and search.
        metadata: JSON-compatible metadata; filters refer to it as ``metadata.<key>``.
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
    """Combine texts, ids and metadata into documents.

    Raises:
        InvalidDocumentError: If their lengths differ, or a single text is given instead of a list.
    """
    if isinstance(texts, (str, Document)):
        raise InvalidDocumentError(f"Give a list of texts, not a single {type(texts).__name__}.")
    items = list(texts)
    for name, values in (("ids", ids), ("metadata", metadata)):
        if isinstance(values, (str, Mapping)):
            raise InvalidDocumentError(f"{name} must be a list with an entry for each text, got {values!r:.60}.")
    ids = None if ids is None else list(ids)
    metadata = None if metadata is None else list(metadata)
    for name, listed in (("ids", ids), ("metadata", metadata)):
        if listed is not None and len(listed) != len(items):
            raise InvalidDocumentError(f"There are {len(items)} texts but {len(listed)} {name}.")
    documents = []
    for position, item in enumerate(items):
        if isinstance(item, Document):
            documents.append(item)
            continue
        own_id = ids[position] if ids is not None else None
        own_metadata = metadata[position] if metadata is not None else None
        documents.append(Document(text=item, id=own_id, metadata={} if own_metadata is None else own_metadata))
    return documents


def validate(documents: Sequence[Document]) -> list[Document]:
    """Validate documents before anything is encoded or written, and assign random ids to those without one.

    Raises:
        InvalidDocumentError: If a text is empty, a text or id is not a string, an id is given twice, or metadata is
            not a JSON object.
    """
    checked: list[Document] = []
    seen: set[str] = set()
    for position, document in enumerate(documents):
        where = f"Document {position}" + (f" (id {document.id!r})" if document.id else "")
        if not isinstance(document.text, str):
            raise InvalidDocumentError(
                f"{where}: the text must be a str, got {type(document.text).__name__}: {document.text!r:.60}."
            )
        if not document.text.strip():
            raise InvalidDocumentError(f"{where}: the text is empty. Leave such documents out.")
        if not is_unicode(document.text):
            raise InvalidDocumentError(f"{where}: the text has lone surrogates, so it is not Unicode. Decode it anew.")
        if document.id is not None and (not isinstance(document.id, str) or not document.id):
            raise InvalidDocumentError(f"{where}: the id must be a non-empty str, got {document.id!r:.60}.")
        if document.id is not None and not is_unicode(document.id):
            raise InvalidDocumentError(f"{where}: the id has lone surrogates, so it is not Unicode.")
        _check_json(document.metadata, f"{where}: metadata")
        _check_json(document.payload, f"{where}: payload")
        own_id = document.id or uuid.uuid4().hex
        if own_id in seen:
            raise InvalidDocumentError(f"{where}: this id comes twice in one call. Ids must be distinct.")
        seen.add(own_id)
        checked.append(Document(document.text, own_id, document.metadata, document.payload))
    return checked


def _check_json(value: Any, where: str) -> None:
    if not isinstance(value, Mapping):
        raise InvalidDocumentError(f"{where} must be a dict, got {type(value).__name__}: {value!r:.60}.")
    try:
        json.dumps(dict(value), allow_nan=False)
        problem = _json_problem(value)
    except (TypeError, ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise InvalidDocumentError(f"{where} cannot be stored as JSON ({problem}): {value!r:.120}.")


def _json_problem(value: Any) -> str | None:
    """Return what is wrong with a value that json.dumps accepts but Qdrant rejects or silently changes."""
    if isinstance(value, str):
        return None if is_unicode(value) else "text with lone surrogates, which is not Unicode"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"{value} does not fit 64 bits"
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                return f"key {key!r} is {type(key).__name__}, not str"
            if problem := _json_problem(key) or _json_problem(item):
                return problem
    elif isinstance(value, (list, tuple)):
        return next((problem for item in value if (problem := _json_problem(item))), None)
    return None


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
