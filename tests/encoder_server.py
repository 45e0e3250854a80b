"""A server of encoders over real sockets, by ``jcv2_plugin.encoder.protocol``, and its misbehaviours."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.protocol import MODELS, MULTI_VECTOR, TOKENIZE

ALL = ("base64", "long_documents", "pool_factor", "tokens")


class EncoderServer:
    """Serves an encoder on a free port of the loopback interface.

    Args:
        encoder: The encoder.
        model: Its name.
        features: What it has beyond the base.
        plain: Serve the base only, without a list of models, as Jina's API.
        key: API key that it wants.

    Attributes:
        requests: Path, headers and body of each request.
        misbehave: Called with a handler and the right answer for each encoding request. True if it has answered.
    """

    def __init__(
        self,
        encoder: JinaColbertEncoder,
        *,
        model: str = "mini",
        features: tuple[str, ...] = ALL,
        plain: bool = False,
        key: str | None = None,
    ) -> None:
        self.encoder, self.model, self.plain, self.key = encoder, model, plain, key
        self.features: tuple[str, ...] = () if plain else features
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.misbehave: Callable[[Handler, Any], bool] = lambda handler, answer: False
        self.tells_weights = True
        self._encoding = threading.Lock()
        handler = type("Bound", (Handler,), {"site": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> EncoderServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def encodings(self) -> list[list[str]]:
        """The texts of each encoding request."""
        return [body["input"] for path, _, body in self.requests if path == MULTI_VECTOR]

    def listed(self) -> dict[str, Any]:
        encoder = self.encoder
        entry: dict[str, Any] = {
            "id": self.model,
            "dims": list(encoder.dims),
            "default_dim": encoder.dims[0],
            "query_length": encoder.query_length,
            "document_length": encoder.document_length,
            "content_length": encoder.content_length,
            "revision": encoder.revision,
            "skiplist": encoder.skiplist,
            "features": list(self.features),
        }
        if self.tells_weights:
            entry["fingerprints"] = {str(dim): encoder.head_fingerprint(dim) for dim in encoder.dims}
        return {"object": "list", "data": [entry]}

    def tokens(self, body: Any) -> dict[str, Any]:
        texts = body["input"]
        items = [{"index": index, "ids": ids} for index, ids in enumerate(self.encoder.tokenized(texts).ids)]
        if body.get("return_tokens"):
            for item, text in zip(items, texts, strict=True):
                task, long = body.get("input_type", "document"), body.get("long_documents", "truncate")
                rows = self.encoder.scored_tokens(text, task, long)
                item["tokens"] = [[row.token, row.start, row.end] for row in rows]
        return {"model": self.model, "data": items}

    def encoded(self, body: Any) -> dict[str, Any]:
        texts, dim = body["input"], body.get("dimensions") or self.encoder.dims[0]
        with self._encoding:
            if body.get("input_type") == "query":
                vectors = self.encoder.query_vectors(texts, dim)
            else:
                options = (body.get("long_documents", "truncate"), body.get("pool_factor", 1.0))
                vectors = self.encoder.document_vectors(texts, dim, *options)
        items: list[dict[str, Any]] = []
        for index, rows in enumerate(vectors):
            plain = body.get("embedding_type", "float") == "float"
            written = rows.tolist() if plain else base64.b64encode(rows.astype("<f2").tobytes()).decode()
            items.append({"object": "embeddings", "index": index, "embeddings": written})
        if body.get("return_tokens"):
            for item, found in zip(items, self.tokens(body)["data"], strict=True):
                item |= found
        items.reverse()  # the order is free
        answer: dict[str, Any] = {"model": self.model, "data": items, "usage": {"total_tokens": 1}}
        if not self.plain and self.tells_weights:
            answer["fingerprint"] = self.encoder.head_fingerprint(dim)
        return answer


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    site: EncoderServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Keep the tests' output clean."""

    def reply(self, status: int, body: Any, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def refuse(self, status: int, code: str, detail: str, **more: Any) -> None:
        self.reply(status, {"detail": detail, "code": code, **more})

    def _allowed(self, body: Any) -> bool:
        self.site.requests.append((self.path, dict(self.headers.items()), body))
        if self.site.key is not None and self.headers.get("Authorization") != f"Bearer {self.site.key}":
            self.refuse(401, "unauthorized", f"no such key: {self.headers.get('Authorization')}")
            return False
        return True

    def do_GET(self) -> None:
        if self._allowed(None):
            if self.path == MODELS and not self.site.plain:
                self.reply(200, self.site.listed())
            else:
                self.reply(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        site = self.site
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._allowed(body):
            return
        if body["model"] != site.model:
            self.refuse(404, "unknown_model", f"there is {site.model}")
        elif self.path == TOKENIZE and "tokens" in site.features:
            self.reply(200, site.tokens(body))
        elif self.path == MULTI_VECTOR:
            answer = site.encoded(body)
            if not site.misbehave(self, answer):
                self.reply(200, answer)
        else:
            self.reply(404, {"detail": "Not Found"})


def hang(handler: Handler, answer: Any) -> bool:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    for _ in range(30):  # a byte now and then
        time.sleep(0.05)
        handler.wfile.write(b" ")
        handler.wfile.flush()
    handler.close_connection = True
    return True


def break_off(handler: Handler, answer: Any) -> bool:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    handler.close_connection = True
    return True


def answering(status: int, body: Any, **headers: str) -> Callable[[Handler, Any], bool]:
    def misbehave(handler: Handler, answer: Any) -> bool:
        handler.reply(status, body, **headers)
        return True

    return misbehave


def changed(change: Callable[[Any], Any]) -> Callable[[Handler, Any], bool]:
    def misbehave(handler: Handler, answer: Any) -> bool:
        handler.reply(200, change(answer))
        return True

    return misbehave


def rows_are(change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Handler, Any], bool]:
    """Change the rows of the text that comes first."""

    def first(answer: Any) -> Any:
        answer["data"][-1]["embeddings"] = change(np.array(answer["data"][-1]["embeddings"]))
        return answer

    return changed(first)
