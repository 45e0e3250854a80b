"""One thread that encodes what many requests ask for, together.

A request's texts are a job. The thread takes texts from all jobs in turn until the token budget is full, so that a
small request does not wait for the end of a large one.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.encoder.protocol import InputType
from jcv2_plugin.serving.answers import RefusedError
from jcv2_plugin.serving.metrics import Metrics
from jcv2_plugin.serving.tracing import Tracing

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder

Vectors = list[NDArray[np.float32]]

_LONGEST_WAIT = 60  # seconds that a client is told to wait at the most


@dataclass(eq=False)
class Job:
    """Texts to encode for one request.

    Attributes:
        texts: Texts, or windows of documents. At least one.
        sizes: Tokens of each, for the budget.
        span: Span of the request, if there is tracing.
        vectors: Those of the first texts, as far as they are encoded.
        taken: Number of texts that are encoded or being encoded.
        future: Vectors of all texts, in order. Cancel it to drop the job.
    """

    task: InputType
    texts: list[str]
    sizes: list[int]
    dim: int
    pool_factor: float = 1.0
    span: Any = None
    vectors: Vectors = field(default_factory=list)
    taken: int = 0
    future: Future[Vectors] = field(default_factory=Future)


@dataclass(frozen=True)
class _Part:
    """The texts of a job from ``start`` to ``stop``."""

    job: Job
    start: int
    stop: int

    @property
    def texts(self) -> list[str]:
        return self.job.texts[self.start : self.stop]


class Batcher:
    """Encodes jobs in a thread of its own, about ``budget`` tokens in one go. Nothing else uses the encoder."""

    def __init__(self, encoder: JinaColbertEncoder, budget: int, metrics: Metrics, tracing: Tracing) -> None:
        self._encoder, self._budget, self._metrics, self._tracing = encoder, budget, metrics, tracing
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._speed = 0.0  # tokens a second
        self._thread = threading.Thread(target=self._run, name="jcv2-serve-encoder", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Encode what has been submitted, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def is_running(self) -> bool:
        """Whether jobs are accepted and encoded."""
        return self._thread.is_alive() and not self._closing

    def submit(self, job: Job) -> Future[Vectors]:
        """Queue a job. Raises RefusedError if the thread is not running."""
        with self._changed:
            if not self.is_running:
                raise RefusedError(503, "unavailable", "The server is stopping.", headers={"Retry-After": "5"})
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def seconds_to_wait(self) -> int:
        """Return how long the jobs in the queue will take, in whole seconds: at least 1, at most 60."""
        with self._changed:
            tokens = sum(sum(job.sizes[job.taken :]) for job in self._jobs)
            seconds = tokens / self._speed if self._speed else 1.0
        return max(1, min(round(seconds), _LONGEST_WAIT))

    def _run(self) -> None:
        while parts := self._take():
            try:
                self._encode(parts)
            except Exception as error:
                self._encode_alone(parts, error)

    def _encode_alone(self, parts: list[_Part], error: Exception) -> None:
        """Encode each job's texts by themselves, so that those that fail concern no other request."""
        for part in parts:
            failure: Exception | None = error
            if len(parts) > 1:
                try:
                    self._encode([part])
                    failure = None
                except Exception as own:
                    failure = own
            if failure is not None and part.job.future.set_running_or_notify_cancel():
                part.job.future.set_exception(failure)

    def _take(self) -> list[_Part]:
        """Wait for jobs, and take texts of one task from them in turn. None are left when the server closes."""
        with self._changed:
            while not (jobs := [job for job in self._jobs if not job.future.done()]):
                self._jobs.clear()
                if self._closing:
                    return []
                self._changed.wait()
            turn = deque(job for job in jobs if job.task == jobs[0].task)
            starts = {job: job.taken for job in turn}
            left = self._budget
            while turn:
                job = turn.popleft()
                size = job.sizes[job.taken]
                if size > left < self._budget:
                    break
                left -= size
                job.taken += 1
                if job.taken < len(job.texts):
                    turn.append(job)
            parts = [_Part(job, start, job.taken) for job, start in starts.items() if job.taken > start]
            touched = {part.job for part in parts}
            again = [job for job in jobs if job in touched and job.taken < len(job.texts)]
            self._jobs = deque([*(job for job in jobs if job not in touched), *again])
            return parts

    def _encode(self, parts: Sequence[_Part]) -> None:
        task = parts[0].job.task
        texts = [text for part in parts for text in part.texts]
        tokens = sum(sum(part.job.sizes[part.start : part.stop]) for part in parts)
        dims = sorted({part.job.dim for part in parts})
        began = time.perf_counter()
        with self._tracing.batch(task, len(texts), tokens, [part.job.span for part in parts]):
            encode = self._encoder.encode_query if task == "query" else self._encoder.encode_document
            by_dim: dict[int, list[Any]] = encode(texts, dim=dims, convert_to_numpy=True, show_progress_bar=False)
            at = 0
            encoded: list[Vectors] = []
            for part in parts:
                own = by_dim[part.job.dim][at : at + part.stop - part.start]
                encoded.append(_pooled([np.asarray(one, dtype=np.float32) for one in own], part.job))
                at += len(own)
        seconds = time.perf_counter() - began
        self._metrics.batch(task, len(parts), len(texts), tokens, seconds)
        self._speed = tokens / max(seconds, 1e-6)
        for part, vectors in zip(parts, encoded, strict=True):
            job = part.job
            job.vectors.extend(vectors)
            if len(job.vectors) == len(job.texts) and job.future.set_running_or_notify_cancel():
                job.future.set_result(job.vectors)


def _pooled(vectors: Vectors, job: Job) -> Vectors:
    if job.task == "query" or job.pool_factor == 1:
        return vectors
    import torch
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    pooled = HierarchicalTokenPooling(job.pool_factor).pool([torch.from_numpy(one) for one in vectors], task=job.task)
    return [one.numpy() for one in pooled]
