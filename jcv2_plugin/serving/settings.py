"""Settings of a server."""

from __future__ import annotations

from dataclasses import dataclass, field

from jcv2_plugin.checks import check_integer, check_number
from jcv2_plugin.errors import InvalidOptionError


@dataclass(frozen=True)
class ServerSettings:
    """Limits and keys of a server. A request over a limit is refused before it costs anything.

    Attributes:
        name: Name of the model for clients. None means the encoder's own, for a folder its last part.
        keys: Keys, one of which a request must carry. Without any, everyone may ask.
        max_batch_tokens: Tokens that are encoded in one go, of as many requests as there are. None means the
            encoder's ``tokens_per_batch``, times the threads on a CPU.
        max_waiting: Requests that are worked on or wait; more are refused with 429.
        max_body: Bytes of a request.
        max_texts: Texts of a request.
        max_request_tokens: Tokens of a request. They bound the memory that its vectors take.
        body_seconds: Seconds that a client has to send a request.

    Raises:
        InvalidOptionError: If a limit is not positive, or a key is blank or not ASCII.
    """

    name: str | None = None
    keys: tuple[str, ...] = field(default=(), repr=False)
    max_batch_tokens: int | None = None
    max_waiting: int = 128
    max_body: int = 4 * 2**20
    max_texts: int = 1024
    max_request_tokens: int = 2**18
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_waiting", "max_body", "max_texts", "max_request_tokens"):
            check_integer(getattr(self, name), name)
        if self.max_batch_tokens is not None:
            check_integer(self.max_batch_tokens, "max_batch_tokens")
        if check_number(self.body_seconds, "body_seconds", InvalidOptionError) <= 0:
            raise InvalidOptionError(f"body_seconds must be positive, got {self.body_seconds!r}.")
        # A header holds nothing else. The message must not show the key.
        if not all(key and key.isascii() and key.isprintable() and " " not in key for key in self.keys):
            raise InvalidOptionError("A key must be printable ASCII without spaces, and not empty.")
