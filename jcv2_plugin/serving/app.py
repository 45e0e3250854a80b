"""The web application: paths, errors, and the OpenAPI page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response

from jcv2_plugin import __version__
from jcv2_plugin.encoder import protocol
from jcv2_plugin.encoder.protocol import MODELS, MULTI_VECTOR, TOKENIZE
from jcv2_plugin.errors import InvalidDocumentError, InvalidQueryError
from jcv2_plugin.serving import bodies
from jcv2_plugin.serving.answers import RefusedError, to_json
from jcv2_plugin.serving.gate import Gate
from jcv2_plugin.serving.metrics import Metrics
from jcv2_plugin.serving.service import Service, Visit
from jcv2_plugin.serving.settings import ServerSettings
from jcv2_plugin.serving.tracing import Tracing

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder

RERANK, RERANK_V2, HEALTH, METRICS = "/v1/rerank", "/v2/rerank", "/health", "/metrics"
_WORK = (MULTI_VECTOR, TOKENIZE, RERANK, RERANK_V2)
_PAGES = ("/docs", "/openapi.json")
_FREE = (HEALTH, *_PAGES)

_ERRORS: dict[int, str] = {
    400: "The body is no JSON.",
    401: "The key is missing or wrong.",
    404: "There is no such model.",
    408: "The request did not arrive in time.",
    413: "The request is over a limit.",
    422: "The request is wrong.",
    429: "The queue is full.",
    500: "The server failed.",
    503: "The server is stopping.",
}
_METRICS_PAGE = {"description": "Counters of this server.", "content": {"text/plain": {"schema": {"type": "string"}}}}
_ABOUT = "Token vectors and reranking by late interaction, for the clients of Jina's and Cohere's services too."


def create_app(
    encoder: JinaColbertEncoder, settings: ServerSettings | None = None, *, tracer_provider: Any = None
) -> FastAPI:
    """Return the ASGI application that serves an encoder, which nothing else may use."""
    metrics, tracing = Metrics(), Tracing(tracer_provider)
    service = Service(encoder, settings or ServerSettings(), metrics, tracing)

    @asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await run_in_threadpool(service.close)

    app = FastAPI(title="jcv2 serve", version=__version__, description=_ABOUT, lifespan=running, redoc_url=None)
    app.state.service = service

    async def answer(work: Callable[[Visit], dict[str, Any]]) -> Response:
        content = await service.run(lambda visit: to_json(work(visit)))
        return Response(content, media_type="application/json")

    @app.post(MULTI_VECTOR, **_documented(protocol.EncodingAnswer, *_ERRORS))
    async def multi_vector(body: protocol.EncodingRequest) -> Response:
        """Encode queries or documents into token vectors."""
        return await answer(lambda visit: service.encode(body, visit))

    @app.post(TOKENIZE, **_documented(protocol.TokenAnswer, *_ERRORS))
    async def tokenize(body: protocol.TokenRequest) -> Response:
        """Return the tokens of texts, without encoding them."""
        return await answer(lambda visit: service.tokenize(body, visit))

    @app.post(RERANK, **_documented(bodies.RerankAnswerBody, *_ERRORS))
    async def rerank(body: bodies.RerankBody) -> Response:
        """Rank documents by their relevance to a query, in the form of Jina and of Cohere's first version."""
        return await answer(lambda visit: service.rerank(body, visit, "1"))

    @app.post(RERANK_V2, **_documented(bodies.RerankAnswerBody, *_ERRORS))
    async def rerank_v2(body: bodies.RerankBodyV2) -> Response:
        """Rank documents by their relevance to a query, in the form of Cohere's second version."""
        return await answer(lambda visit: service.rerank(body, visit, "2"))

    @app.get(MODELS, **_documented(protocol.ModelList, 401))
    async def models() -> Response:
        """Describe the model."""
        return Response(to_json(service.models()), media_type="application/json")

    @app.get(HEALTH, **_documented(bodies.HealthBody, 503))
    async def health() -> Response:
        """Say whether the server works. Needs no key."""
        works = service.batcher.is_running
        content = {"status": "ok" if works else "stopping", "model": service.name}
        if not works:
            raise RefusedError(503, "unavailable", "The server is stopping.", headers={"Retry-After": "5"})
        return Response(to_json(content), media_type="application/json")

    @app.get(METRICS, response_model=None, responses={200: _METRICS_PAGE, **_errors(401)})
    async def prometheus() -> Response:
        """Return what Prometheus reads."""
        return Response(metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    known = (*_WORK, MODELS, HEALTH, METRICS, *_PAGES)
    app.add_middleware(Gate, service=service, metrics=metrics, work=_WORK, known=known, free=_FREE)
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    vars(app)["openapi"] = lambda: _openapi(app, service)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": protocol.ErrorAnswer, "description": _ERRORS[status]} for status in statuses}


def _documented(model: type, *statuses: int) -> dict[str, Any]:
    """Return what describes a path. Answers are written without pydantic, which is slow for vectors."""
    return {"response_model": None, "responses": {200: {"model": model}, **_errors(*statuses)}}


def _openapi(app: FastAPI, service: Service) -> dict[str, Any]:
    """Return the OpenAPI description, with the dimensions and limits of this server."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
        schemas = described["components"]["schemas"]
        dims = [*service.encoder.dims, None]
        for body in (protocol.EncodingRequest, protocol.TokenRequest, bodies.RerankBody, bodies.RerankBodyV2):
            fields = schemas[body.__name__]["properties"]
            listed = "input" if "input" in fields else "documents"
            fields["model"]["examples"] = [service.name]
            if "dimensions" in fields:
                fields["dimensions"]["enum"] = dims
            if "document_length" in fields:
                fields["document_length"]["enum"] = [service.encoder.document_length, None]
            texts = fields[listed]["anyOf"][0] if "anyOf" in fields[listed] else fields[listed]
            texts["maxItems"] = service.settings.max_texts
        if service.settings.keys:
            described["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in described["paths"].items():
                for operation in methods.values():
                    operation["security"] = [] if path in _FREE else [{"key": []}]
        app.openapi_schema = described
    return app.openapi_schema


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _not_valid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return RefusedError(400, "invalid_request", f"The body is no JSON: {first['ctx']['error']}.").response()
    if first["loc"] == ("body",) and first["type"] in ("model_attributes_type", "missing"):
        detail = "The body must be a JSON object, sent with the header 'Content-Type: application/json'."
        return RefusedError(422, "invalid_request", detail).response()
    place = [one for one in first["loc"] if one != "body"]
    where = "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place).removeprefix(".")
    what = str(first["msg"]).removeprefix("Value error, ")
    index = next((one for one in place if isinstance(one, int)), None)
    return RefusedError(422, "invalid_request", f"{where or 'The body'}: {what}.", index=index).response()


async def _no_page(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404:
        detail = f"There is nothing here. There are {', '.join((*_WORK, MODELS, HEALTH, METRICS, '/docs'))}."
    if error.status_code == 400:
        return RefusedError(400, "invalid_request", detail).response()
    return RefusedError(error.status_code, None, detail, headers=error.headers).response()


async def _not_ours(_: Request, error: Exception) -> Response:
    return RefusedError(422, "invalid_request", str(error)).response()


async def _failed(_: Request, error: Exception) -> Response:
    return RefusedError(500, None, f"The server failed ({type(error).__name__}). Its log says more.").response()


_HANDLERS: dict[Any, Any] = {
    RefusedError: _refused,
    RequestValidationError: _not_valid,
    HTTPException: _no_page,
    InvalidDocumentError: _not_ours,
    InvalidQueryError: _not_ours,
    Exception: _failed,
}
