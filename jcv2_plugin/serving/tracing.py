"""OpenTelemetry spans of requests and batches, where its API is installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


class Tracing:
    """Makes spans, by a provider or the process's own. Without OpenTelemetry's API or an SDK, it does nothing."""

    def __init__(self, provider: Any = None) -> None:
        self._tracer: Any = None
        if find_spec("opentelemetry") is not None and find_spec("opentelemetry.trace") is not None:
            from opentelemetry import trace

            self._tracer = trace.get_tracer("jcv2_plugin.serving", tracer_provider=provider)

    @contextmanager
    def request(self, method: str, path: str, headers: Mapping[str, str]) -> Iterator[Any]:
        """Open the span of a request, below the caller's (``traceparent``). Yields the span, or None."""
        if self._tracer is None:
            yield None
            return
        from opentelemetry import propagate, trace

        attributes = {"http.request.method": method, "url.path": path}
        with self._tracer.start_as_current_span(
            f"{method} {path}",
            context=propagate.extract(headers),
            kind=trace.SpanKind.SERVER,
            attributes=attributes,
        ) as span:
            yield span

    def current(self) -> Any:
        """Return the span that is open here, or None."""
        if self._tracer is None:
            return None
        from opentelemetry import trace

        return trace.get_current_span()

    @contextmanager
    def batch(self, task: str, texts: int, tokens: int, requests: Iterable[Any]) -> Iterator[None]:
        """Open the span of a batch, with links to the spans of its requests."""
        if self._tracer is None:
            yield
            return
        from opentelemetry import trace

        contexts = [span.get_span_context() for span in requests if span is not None]
        with self._tracer.start_as_current_span(
            f"encode {task}",
            links=[trace.Link(context) for context in contexts if context.is_valid],
            attributes={"jcv2.texts": texts, "jcv2.tokens": tokens, "jcv2.requests": len(contexts)},
        ):
            yield
