"""Bodies of requests and answers of rerankers as Jina's and Cohere's clients send them, and of ``/health``.

pydantic checks them, and the OpenAPI page shows them. Others are in :mod:`jcv2_plugin.encoder.protocol`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, WithJsonSchema

from jcv2_plugin.encoder.protocol import StrictBody, Text, Usage, Whole, unicode_only, whole
from jcv2_plugin.encoder.windows import LongDocuments


def _text_of(value: Any) -> Any:
    return value["text"] if isinstance(value, dict) and "text" in value else value


_ANY = {"type": "string"}
_WITH_TEXT = {"type": "object", "properties": {"text": _ANY}, "required": ["text"]}
# Documents to rank may be blank: they come last, as in rerank().
Ranked = Annotated[str, AfterValidator(unicode_only), WithJsonSchema(_ANY)]
RankedText = Annotated[
    str, BeforeValidator(_text_of), AfterValidator(unicode_only), WithJsonSchema({"anyOf": [_ANY, _WITH_TEXT]})
]
Number = Annotated[int, Field(ge=1), BeforeValidator(whole)]  # in this order, the schema has the minimum too
_CUT = "Tokens of each document to rank by. What follows is ignored."


class RerankBodyV2(StrictBody):
    """Documents to rank, as clients of Cohere's second version send them."""

    model: str
    query: Text
    documents: list[Ranked] = Field(min_length=1)
    top_n: Number | None = None
    dimensions: Whole | None = None
    long_documents: LongDocuments = "split"
    max_tokens_per_doc: Number | None = Field(None, description=_CUT)


class RerankBody(StrictBody):
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
    usage: Usage
    meta: dict[str, Any]


class HealthBody(BaseModel):
    """Whether the server works."""

    status: str
    model: str
