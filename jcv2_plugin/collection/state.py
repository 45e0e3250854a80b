"""State of a collection: engine, schema and the encoder, which is loaded on first use."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from jcv2_plugin.collection.sameness import check_encoder
from jcv2_plugin.encoder.base import Encoder
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.encoder.remote import is_remote
from jcv2_plugin.engines.base import Engine
from jcv2_plugin.engines.first_stage import Stage, StageVector, build_stages
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import CollectionError, CollectionNotFoundError, ForkedProcessError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SIZE_IS_KNOWN_FOR = 30.0  # seconds

T = TypeVar("T")


class OpenCollection:
    """An open collection. A migration does not modify it but replaces it with a new one."""

    def __init__(self, engine: Engine, schema: CollectionSchema, encoder: Encoder | None, device: str | None) -> None:
        self.engine = engine
        self.schema = schema
        self.device = device
        self._encoder = encoder
        self._stages: list[Stage] | None = None
        self._lock = threading.RLock()
        self._size: int | None = None
        self._size_from = 0.0

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded on first use.

        Raises:
            ModelNotFoundError: The model that the collection was created with is not available.
            CollectionMismatchError: The model of that name now has other weights.
        """
        with self._lock:
            if self._encoder is None:
                encoder = load_for(self.schema, self.schema.model, self.device, named_by_user=False)
                check_encoder(self.engine, self.schema, encoder)
                self._encoder = encoder
            return self._encoder

    def encoder_for(self, schema: CollectionSchema) -> Encoder | None:
        """Return the encoder if it is loaded and also fits another schema."""
        if self._encoder is None:
            return None
        try:
            return self._encoder if schema.check_encoder(self._encoder, "") else None
        except CollectionError:
            return None

    @property
    def stages(self) -> list[Stage]:
        """Stages of the first stage, created on first use."""
        with self._lock:
            if self._stages is None:
                schema = self.schema
                self._stages = build_stages(schema.first_stage, self.encoder) if schema.first_stage != "none" else []
            return self._stages

    def stage_vectors(
        self, text: str, vectors: NDArray[np.float32], tokens: list[int] | None = None
    ) -> dict[str, StageVector]:
        """Return the first-stage vectors to store for a document. ``tokens`` saves tokenising the text again."""
        return {stage.name: stage.document(text, vectors, tokens) for stage in self.stages}

    def size(self) -> int:
        """Return the approximate number of documents, cached for 30 seconds."""
        now = time.monotonic()
        if self._size is None or now - self._size_from > _SIZE_IS_KNOWN_FOR:
            self._size, self._size_from = self.engine.size(), now
        return self._size

    def has_changed(self) -> None:
        """Reset the cached size after documents were written or deleted."""
        self._size = None


class CollectionState:
    """What the methods of a :class:`~jcv2_plugin.ColbertCollection` share: the open collection and its locks.

    Attributes:
        migrating: Held by a running migration.
    """

    def __init__(self, current: OpenCollection) -> None:
        self._current = current
        self._process = os.getpid()
        self._writing = threading.RLock()
        self.migrating = threading.Lock()
        self._following = threading.Lock()

    @property
    def current(self) -> OpenCollection:
        """The open collection. A migration replaces it.

        Raises:
            ForkedProcessError: It was opened in the parent of this process.
        """
        if os.getpid() != self._process:
            raise ForkedProcessError(
                f"{self._current.engine.title} was opened in process {self._process}, and process {os.getpid()} was "
                "forked from that. A collection does not survive a fork: open it in each process, after the fork."
            )
        return self._current

    @current.setter
    def current(self, current: OpenCollection) -> None:
        self._current = current

    @property
    def writing(self) -> threading.RLock:
        """Held by one writer at a time, so that a migration or snapshot sees each write completely or not at all.

        Raises:
            ForkedProcessError: See :attr:`current`. The lock may be held by a thread that the fork did not copy.
        """
        _ = self.current
        return self._writing

    def close(self) -> None:
        """Close the engine. This has no effect in a forked child, where it is the parent's."""
        if os.getpid() == self._process:
            self._current.engine.close()

    def run(self, work: Callable[[OpenCollection], T]) -> T:
        """Run ``work`` on the open collection, and again if this or another process has migrated it meanwhile."""
        while True:
            current = self.current
            try:
                return work(current)
            except CollectionError as error:
                if not self.replaced(current, error):
                    raise

    def write(self, work: Callable[[OpenCollection], T]) -> T:
        """Like :meth:`run`, as the only writer of this process."""
        with self.writing:
            return self.run(work)

    def replaced(self, current: OpenCollection, error: CollectionError) -> bool:
        """Return whether another collection has replaced this one, so that failed work should be repeated."""
        return self.current is not current or (isinstance(error, CollectionNotFoundError) and self._follow(current))

    def _follow(self, current: OpenCollection) -> bool:
        """Open the collection that the name points to now, if it is another one."""
        with self._following:
            if self.current is not current:
                return True
            moved = current.engine.moved()
            if moved is None:
                return False
            schema = CollectionSchema.from_dict(moved.describe(), moved.title)
            self.current = OpenCollection(moved, schema, current.encoder_for(schema), current.device)
            return True


def load_for(schema: CollectionSchema, model: str, device: str | None, *, named_by_user: bool) -> Encoder:
    """Load an encoder with the settings of a collection's schema.

    Args:
        schema: The schema.
        model: The model.
        device: Device for it.
        named_by_user: Whether the user named the model. Otherwise, a server gets no key that was not meant for it.
    """
    same = model == schema.model
    skiplist: Any = schema.skiplist if schema.skiplist != "custom" and schema.knows_weights else "default"
    options: dict[str, Any] = {"named_by_user": named_by_user} if is_remote(model) else {}
    return load_encoder(
        model,
        dims=schema.dim,
        device=device,
        revision=schema.revision if same else None,
        document_length=schema.document_length if schema.knows_weights or same else None,
        skiplist=skiplist,
        **options,
    )
