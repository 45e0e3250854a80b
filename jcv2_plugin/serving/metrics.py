"""What a server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._requests = Counter("jcv2_requests", "Requests answered.", ["path", "status"], registry=self._registry)
        self._seconds = Histogram(
            "jcv2_request_seconds", "Seconds to answer a request.", ["path"], buckets=_SECONDS, registry=self._registry
        )
        self.waiting = Gauge("jcv2_requests_waiting", "Requests that are worked on or wait.", registry=self._registry)
        self._texts = Counter("jcv2_texts", "Texts and windows encoded.", ["type"], registry=self._registry)
        self._tokens = Counter("jcv2_tokens", "Tokens encoded.", ["type"], registry=self._registry)
        self._batch_seconds = Histogram(
            "jcv2_batch_seconds", "Seconds to encode a batch.", ["type"], buckets=_SECONDS, registry=self._registry
        )
        self._batch_requests = Histogram(
            "jcv2_batch_requests", "Requests in a batch.", ["type"], buckets=_SIZES, registry=self._registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, task: str, requests: int, texts: int, tokens: int, seconds: float) -> None:
        """Count a batch that was encoded."""
        self._texts.labels(task).inc(texts)
        self._tokens.labels(task).inc(tokens)
        self._batch_seconds.labels(task).observe(seconds)
        self._batch_requests.labels(task).observe(requests)

    def text(self) -> bytes:
        """Return all counters in Prometheus's text format."""
        return generate_latest(self._registry)
