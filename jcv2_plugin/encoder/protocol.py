"""The protocol between :class:`~jcv2_plugin.RemoteEncoder` and a server of encoders, as types. Imports no torch.

**The base** is that of Jina's API. ``POST /v1/multi-vector`` takes :class:`EncodingRequest` and answers with
:class:`EncodingAnswer`, one :class:`Item` for each text. A key goes in the header ``Authorization: Bearer KEY``. Bodies
are JSON in UTF-8. A server may answer the items in any order: ``index`` counts.

**What only our server has** is announced by ``GET /v1/models`` (:class:`ModelList`), in the ``features`` of a model. A
client uses what is announced and nothing else:

``base64``
    ``embedding_type: "base64"``: ``embeddings`` is one string for each text. It holds the rows one after another as
    float16, little-endian. The dimension is that of the request, so the number of rows follows from the length.
``long_documents``
    The request's ``long_documents``, which is ``"truncate"`` without it, and ``document_length``.
``pool_factor``
    The request's ``pool_factor``: token pooling of documents.
``tokens``
    The request's ``return_tokens``, and ``POST /v1/tokenize``, which takes :class:`TokenRequest` and answers with
    :class:`TokenAnswer`, without encoding.

**Errors** have a status and the body :class:`ErrorAnswer`. Their ``code`` says what is wrong:

==================== ====== =========================================================================================
code                 status what is wrong
==================== ====== =========================================================================================
invalid_request      422    The body is no JSON (400) or has wrong types, an empty list, or a blank text.
unknown_model        404    There is no such model. ``detail`` names those there are.
unknown_dimension    422    The model has no head for ``dimensions``. ``detail`` names those there are.
other_length         422    The server's window is not the ``document_length`` of the request.
document_too_long    422    ``long_documents`` is ``"error"`` and ``input[index]`` does not fit the window.
unauthorized         401    The key is missing or wrong.
too_large            413    The body, or the number of texts, is over a limit. The client sends less at a time.
busy                 429    The queue is full. ``Retry-After`` holds the seconds to wait.
unavailable          503    The server is stopping or still loading. Also with ``Retry-After``.
==================== ====== =========================================================================================

A client tries 408, 429, 500, 502, 503, 504 and lost connections again, for requests change nothing on a server. It
follows no redirects.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from typing_extensions import NotRequired

MULTI_VECTOR = "/v1/multi-vector"
TOKENIZE = "/v1/tokenize"
MODELS = "/v1/models"

KEY_VARIABLE = "JCV2_API_KEY"
"""Environment variable with the key, on the server and for its clients."""

InputType = Literal["query", "document"]
EmbeddingType = Literal["float", "base64"]
Feature = Literal["base64", "long_documents", "pool_factor", "tokens"]

ErrorCode = Literal[
    "invalid_request",
    "unknown_model",
    "unknown_dimension",
    "other_length",
    "document_too_long",
    "unauthorized",
    "too_large",
    "busy",
    "unavailable",
]


class EncodingRequest(TypedDict):
    """Body of ``POST /v1/multi-vector``. What is not required by the base belongs to a feature.

    Attributes:
        model: Name of the model, an ``id`` of ``/v1/models``.
        input: Texts, at least one. None is blank.
        input_type: How they are encoded.
        dimensions: Matryoshka dimension. Our server takes the model's default if it is missing.
        embedding_type: How the vectors are written. ``"float"``, lists of numbers, if it is missing.
        long_documents: What to do with documents longer than the window.
        document_length: The window that the client expects, in tokens with markers. A server with another refuses.
        pool_factor: Token pooling factor of documents, 1 or more.
        return_tokens: Whether to add ``ids`` and ``tokens`` to the items.
    """

    model: str
    input: list[str]
    input_type: NotRequired[InputType]
    dimensions: NotRequired[int]
    embedding_type: NotRequired[EmbeddingType]
    long_documents: NotRequired[Literal["truncate", "split", "error"]]
    document_length: NotRequired[int]
    pool_factor: NotRequired[float]
    return_tokens: NotRequired[bool]


class TokenRequest(TypedDict):
    """Body of ``POST /v1/tokenize``.

    Attributes:
        model: Name of the model.
        input: Texts, at least one.
        input_type: As what they would be encoded. It matters to ``tokens`` only. ``"document"`` if it is missing.
        long_documents: As in :class:`EncodingRequest`. It matters to ``tokens`` only.
        return_tokens: Whether to add ``tokens`` to the items. False if it is missing.
    """

    model: str
    input: list[str]
    input_type: NotRequired[InputType]
    long_documents: NotRequired[Literal["truncate", "split", "error"]]
    return_tokens: NotRequired[bool]


class Item(TypedDict):
    """What belongs to one text.

    Attributes:
        index: Position of the text in ``input``.
        embeddings: Its vectors, unless tokens alone were asked for: a list of rows, or a base64 string. Each row has
            length 1, within the precision of the model and of the format.
        ids: Ids of all its tokens, without special tokens and prompt, however long it is. ``TokenizedTexts.ids``.
        tokens: ``[token, start, end]`` for each row that it has without pooling: the vocabulary entry, and
            ``text[start:end]`` in code points. Markers and [MASK] have ``start == end``. ``ScoredToken``.
    """

    index: int
    embeddings: NotRequired[list[list[float]] | str]
    ids: NotRequired[list[int]]
    tokens: NotRequired[list[tuple[str, int, int]]]


class Usage(TypedDict):
    """Tokens of a request, as its texts have them for the model."""

    total_tokens: int


class EncodingAnswer(TypedDict):
    """Answer of ``POST /v1/multi-vector``.

    Attributes:
        model: Name of the model.
        data: One item for each text, in any order.
        usage: Tokens encoded.
        fingerprint: Fingerprint of the weights for this dimension, so that a client notices another model behind the
            same address. Ours only.
    """

    model: str
    data: list[Item]
    usage: Usage
    fingerprint: NotRequired[str]


class TokenAnswer(TypedDict):
    """Answer of ``POST /v1/tokenize``: items with ``ids``, and ``tokens`` if asked for, but without ``embeddings``."""

    model: str
    data: list[Item]


class ModelEntry(TypedDict):
    """A model of ``GET /v1/models``. A server of another maker gives ``id`` at the most.

    Attributes:
        id: Name for requests.
        object: ``"model"``.
        dims: Matryoshka dimensions that it has heads for.
        default_dim: The dimension without ``dimensions``.
        query_length: Number of vectors of each query, or null if queries are not padded.
        document_length: Window for documents in tokens, markers included.
        content_length: Text tokens that fit in the window.
        revision: Revision of the model, or null.
        fingerprints: Fingerprint of the weights for each dimension, by the dimension as a string.
        skiplist: ``"stanford"``, ``"pieces"``, ``"custom"`` or null.
        features: What the server has beyond the base.
    """

    id: str
    object: NotRequired[Literal["model"]]
    dims: NotRequired[list[int]]
    default_dim: NotRequired[int]
    query_length: NotRequired[int | None]
    document_length: NotRequired[int]
    content_length: NotRequired[int]
    revision: NotRequired[str | None]
    fingerprints: NotRequired[dict[str, str]]
    skiplist: NotRequired[str | None]
    features: NotRequired[list[Feature]]


class ModelList(TypedDict):
    """Answer of ``GET /v1/models``."""

    object: NotRequired[Literal["list"]]
    data: list[ModelEntry]


class ErrorAnswer(TypedDict):
    """Body of an answer with an error status.

    Attributes:
        detail: What is wrong and how to mend it. Never holds a key.
        code: See above.
        index: Position in ``input`` of the text that is wrong, if it is one.
    """

    detail: str
    code: NotRequired[ErrorCode]
    index: NotRequired[int]
