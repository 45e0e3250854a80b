"""Bodies of requests and answers, as pydantic checks them and the OpenAPI page shows them.

Those of :mod:`jcv2_plugin.encoder.protocol`, and those of rerankers as Jina's and Cohere's clients send them.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from jcv2_plugin.documents import VISIBLE, has_text, is_unicode
from jcv2_plugin.encoder.protocol import EmbeddingType, ErrorCode, InputType
from jcv2_plugin.encoder.windows import LongDocuments


def _unicode(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("the text is no Unicode: it has lone surrogates. Decode it again")
    return text


def _not_blank(text: str) -> str:
    if not has_text(text):
        raise ValueError("the text is blank. Leave it out")
    return _unicode(text)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _text_of(value: Any) -> Any:
    return value["text"] if isinstance(value, dict) and "text" in value else value


def _whole(value: Any) -> Any:
    # JSON does not tell 64.0 from 64.
    return int(value) if isinstance(value, float) and value.is_integer() else value


_TEXT = {"type": "string", "pattern": VISIBLE.pattern}
_ANY = {"type": "string"}
_WITH_TEXT = {"type": "object", "properties": {"text": _ANY}, "required": ["text"]}

Text = Annotated[str, AfterValidator(_not_blank), WithJsonSchema(_TEXT)]
Texts = Annotated[
    list[Text],
    BeforeValidator(_as_list),
    Field(min_length=1),
    WithJsonSchema({"anyOf": [{"type": "array", "items": _TEXT, "minItems": 1}, _TEXT]}),
]
# Documents to rank may be blank: they come last, as in rerank().
Ranked = Annotated[str, AfterValidator(_unicode), WithJsonSchema(_ANY)]
RankedText = Annotated[
    str, BeforeValidator(_text_of), AfterValidator(_unicode), WithJsonSchema({"anyOf": [_ANY, _WITH_TEXT]})
]

Whole = Annotated[int, BeforeValidator(_whole)]
Number = Annotated[int, Field(ge=1), BeforeValidator(_whole)]  # in this order, the schema has the minimum too
_CUT = "Tokens of each document to rank by. What follows is ignored."


class _Body(BaseModel):
    # Unknown fields are refused: a misspelt option would otherwise be ignored without a word.
    model_config = ConfigDict(extra="forbid", strict=True)


class EncodingBody(_Body):
    """Texts to encode."""

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


class TokenBody(_Body):
    """Texts to tokenise, without encoding them."""

    model: str
    input: Texts
    input_type: InputType = "document"
    long_documents: LongDocuments = "truncate"
    return_tokens: bool = False


class RerankBody(_Body):
    """Documents to rank, as Jina's clients and those of Cohere's first version send them."""

    model: str | None = None
    query: Text
    documents: list[RankedText] = Field(min_length=1)
    top_n: Number | None = None
    return_documents: bool = True
    dimensions: Whole | None = None
    long_documents: LongDocuments = "split"
    max_tokens_per_doc: Number | None = Field(None, description=_CUT)
    # Clients send these as null. Another value is refused, for it would change nothing here.
    max_chunks_per_doc: None = None
    rank_fields: None = None


class RerankBodyV2(_Body):
    """Documents to rank, as clients of Cohere's second version send them."""

    model: str
    query: Text
    documents: list[Ranked] = Field(min_length=1)
    top_n: Number | None = None
    dimensions: Whole | None = None
    long_documents: LongDocuments = "split"
    max_tokens_per_doc: Number | None = Field(None, description=_CUT)


class ItemBody(BaseModel):
    """What belongs to one text."""

    index: int
    embeddings: list[list[float]] | str | None = None
    ids: list[int] | None = None
    tokens: list[tuple[str, int, int]] | None = None


class UsageBody(BaseModel):
    """Tokens of a request."""

    total_tokens: int


class EncodingAnswerBody(BaseModel):
    """Vectors of the texts of a request."""

    object: str
    model: str
    data: list[ItemBody]
    usage: UsageBody
    fingerprint: str


class TokenAnswerBody(BaseModel):
    """Tokens of the texts of a request."""

    object: str
    model: str
    data: list[ItemBody]


class DocumentBody(BaseModel):
    """A document that was ranked."""

    text: str


class RankedBody(BaseModel):
    """A document's place: its position in the request, its relevance from 0 to 1, and its text."""

    index: int
    relevance_score: float
    document: DocumentBody | None = None


class RerankAnswerBody(BaseModel):
    """Documents by their relevance, the best first."""

    id: str
    model: str
    results: list[RankedBody]
    usage: UsageBody
    meta: dict[str, Any]


class ModelBody(BaseModel):
    """A model, see :class:`~jcv2_plugin.encoder.protocol.ModelEntry`."""

    id: str
    object: str
    dims: list[int]
    default_dim: int
    query_length: int | None
    document_length: int
    content_length: int
    revision: str | None
    fingerprints: dict[str, str]
    skiplist: str | None
    features: list[str]


class ModelListBody(BaseModel):
    """The models of the server."""

    object: str
    data: list[ModelBody]


class HealthBody(BaseModel):
    """Whether the server works."""

    status: str
    model: str


class ErrorBody(BaseModel):
    """What is wrong, and how to mend it."""

    detail: str
    code: ErrorCode | None = None
    index: int | None = None
