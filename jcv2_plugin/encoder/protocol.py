"""The protocol between :class:`~jcv2_plugin.RemoteEncoder` and a server of encoders, as models. Imports no torch.

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

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from jcv2_plugin.documents import VISIBLE, has_text, is_unicode
from jcv2_plugin.encoder.windows import LongDocuments

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


def unicode_only(text: str) -> str:
    """Return a text if it is Unicode, for pydantic."""
    if not is_unicode(text):
        raise ValueError("the text is no Unicode: it has lone surrogates. Decode it again")
    return text


def _not_blank(text: str) -> str:
    if not has_text(text):
        raise ValueError("the text is blank. Leave it out")
    return unicode_only(text)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def whole(value: Any) -> Any:
    """Return an integer for 64.0, which JSON does not tell from 64."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_TEXT = {"type": "string", "pattern": VISIBLE.pattern}
Text = Annotated[str, AfterValidator(_not_blank), WithJsonSchema(_TEXT)]
Texts = Annotated[
    list[Text],
    BeforeValidator(_as_list),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _TEXT, "minItems": 1}, _TEXT]}),
]
Whole = Annotated[int, BeforeValidator(whole)]
_Length = Annotated[int, Field(ge=1, le=2**20)]


class StrictBody(BaseModel):
    """Body of a request. Unknown fields are refused: a misspelt option would otherwise be ignored without a word."""

    model_config = ConfigDict(extra="forbid", strict=True)


class EncodingRequest(StrictBody):
    """Texts to encode. What comes after ``embedding_type`` belongs to a feature."""

    model: str
    input: Texts
    input_type: InputType = "document"
    dimensions: Whole | None = Field(None, description="Matryoshka dimension. Default: the model's own.")
    embedding_type: EmbeddingType = Field(
        "float", description="base64 is one string for each text: its rows as float16, little-endian."
    )
    long_documents: LongDocuments = Field("truncate", description="What to do with documents longer than the window.")
    document_length: Whole | None = Field(None, description="The window that you expect. Another is refused.")
    pool_factor: float = Field(1.0, ge=1, lt=100, description="Token pooling factor of documents.")
    return_tokens: bool = Field(False, description="Whether to add token ids, texts and offsets.")


class TokenRequest(StrictBody):
    """Texts to tokenise, without encoding them. ``input_type`` and ``long_documents`` matter to ``tokens`` only."""

    model: str
    input: Texts
    input_type: InputType = "document"
    long_documents: LongDocuments = "truncate"
    return_tokens: bool = False


class Item(BaseModel):
    """What belongs to one text.

    Attributes:
        index: Position of the text in ``input``.
        embeddings: Its vectors: a list of rows, or a base64 string. Each row has length 1, within the precision of the
            model and of the format.
        ids: Ids of all its tokens, without special tokens and prompt, however long it is. ``TokenizedTexts.ids``.
        tokens: ``[token, start, end]`` for each row that it has without pooling: the vocabulary entry, and
            ``text[start:end]`` in code points. Markers and [MASK] have ``start == end``. ``ScoredToken``.
    """

    index: int
    embeddings: list[list[float]] | str | None = None
    ids: list[int] | None = None
    tokens: list[tuple[str, int, int]] | None = None


class Usage(BaseModel):
    """Tokens of a request, as its texts have them for the model."""

    total_tokens: int


class TokenAnswer(BaseModel):
    """Tokens of the texts of a request, in any order."""

    object: str = "list"
    model: str
    data: list[Item]


class EncodingAnswer(TokenAnswer):
    """Vectors of the texts of a request. The fingerprint of the weights shows another model behind the same address."""

    usage: Usage
    fingerprint: str


class ModelEntry(BaseModel):
    """A model. A server of another maker gives ``id`` at the most.

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
        features: What the server has beyond the base, of :data:`Feature`.
    """

    model_config = ConfigDict(strict=True)

    id: str = Field(max_length=1000)
    object: Any = "model"
    dims: list[Annotated[int, Field(ge=1, le=4096)]] | None = Field(default=None, max_length=256)
    default_dim: int | None = None
    query_length: _Length | None = None
    document_length: _Length | None = None
    content_length: _Length | None = None
    revision: str | None = None
    fingerprints: dict[str, str] | None = None
    skiplist: str | None = None
    features: list[Any] | None = None


class ModelList(BaseModel):
    """The models of a server."""

    object: Any = "list"
    data: list[ModelEntry]


class ErrorAnswer(BaseModel):
    """What is wrong and how to mend it. ``index`` is the position in ``input`` of the text that is wrong."""

    detail: str
    code: ErrorCode | None = None
    index: int | None = None
