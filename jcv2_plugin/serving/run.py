"""Run a server in this process until it is told to stop."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from typing import Any

from jcv2_plugin.errors import InvalidOptionError

PACKAGES = ("fastapi", "orjson", "prometheus_client", "uvicorn")
_KEEP_ALIVE = 75  # seconds; longer than clients keep idle connections, so that none sends into a closing one


def reserve(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, before anything slow is done. Port 0 is any free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InvalidOptionError(f"There is no address {host!r}: {error.strerror or error}.") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise InvalidOptionError(
            f"{host}:{port} cannot be listened on: {error.strerror}. Choose another --host or --port."
        ) from error
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the address of a socket as a URL."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: Any, *, stop_seconds: int | None = None, started: Callable[[], None] = lambda: None) -> Any:
    """Return a ``uvicorn.Server``. Run it with ``server.run(sockets=[...])``, and end it with ``should_exit = True``.

    ``stop_seconds`` is how long requests may run on then; None means as long as they need. ``started`` is called when
    it listens.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

    return Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=stop_seconds,
        )
    )


def run(app: Any, bound: socket.socket, *, stop_seconds: int | None, started: Callable[[], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests that run. See :func:`make_server`."""
    # uvicorn stops well on SIGTERM, but then sends it again to end the process by it.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        make_server(app, stop_seconds=stop_seconds, started=started).run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, before)
