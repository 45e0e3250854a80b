"""A deadline and a largest size for the whole answer of a server. The HTTP client has timeouts for each read only."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx
from qdrant_client import QdrantClient

from jcv2_plugin.errors import InvalidOptionError
from jcv2_plugin.transport import UNCOMPRESSED, refuse_compressed

DEFAULT_TIMEOUT = 5
"""Seconds that a server has to answer, unless another timeout is given."""
_SLOWEST = 100_000
"""Bytes a second at which an answer must at least arrive: what has arrived is more time for the rest."""
_MOST = 2 * 2**30
"""Bytes of an answer. A page of the longest documents' vectors has 1.3 GiB as JSON."""


def connect(url: str, **options: Any) -> QdrantClient:
    """Create a client of a server whose timeout is for a whole answer, over REST as over gRPC. Over REST, its size is
    limited.

    Raises InvalidOptionError if the API key cannot be sent.
    """
    if (key := options.get("api_key")) and re.fullmatch("[!-~]+", str(key)) is None:
        # The HTTP client's own error would quote it.
        raise InvalidOptionError(
            "The API key has characters that cannot be sent, such as a space, an end of line or letters beyond ASCII. "
            "Check the option, the environment variable QDRANT_API_KEY, or the file that it was read from."
        )
    # The client's own check of versions would read any answer to its end, and only warns.
    client = QdrantClient(url=url, **{"timeout": DEFAULT_TIMEOUT, "check_compatibility": False, **options})
    http = client.http.client._client
    http.headers.update(UNCOMPRESSED)
    http.event_hooks["response"].append(refuse_compressed)
    for transport in (http._transport, *http._mounts.values()):
        pool = getattr(transport, "_pool", None)
        if isinstance(backend := getattr(pool, "_network_backend", None), httpcore.NetworkBackend):
            pool._network_backend = _Backend(backend)  # type: ignore[union-attr]
    return client


class _Backend(httpcore.NetworkBackend):
    """Opens connections with a deadline."""

    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_unix_socket(path, timeout, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    """A connection whose reads after a write share one timeout and one largest size."""

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._until: float | None = None
        self._received = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._received > _MOST:
            raise httpx.DecodingError(f"its answer is larger than {_MOST:,} bytes")
        left = None
        if timeout is not None:
            now = time.monotonic()
            self._until = now + timeout if self._until is None else self._until
            if now >= self._until:
                raise httpcore.ReadTimeout("timed out")
            left = self._until - now
        content = self._inner.read(max_bytes, left)
        self._received += len(content)
        if self._until is not None:
            self._until += len(content) / _SLOWEST
        return content

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._until, self._received = None, 0
        self._inner.write(buffer, timeout)

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
