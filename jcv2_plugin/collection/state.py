"""State of a collection: engine, schema and the encoder, which is loaded on first use."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from jcv2_plugin.collection.sameness import check_encoder
from jcv2_plugin.encoder.base import Encoder
from jcv2_plugin.encoder.named import load_encoder
from jcv2_plugin.encoder.remote import is_remote
from jcv2_plugin.engines.base import Engine, Record
from jcv2_plugin.engines.first_stage import (
    ChosenStages,
    FirstStage,
    Stage,
    StageVector,
    build_stages,
    encode_own,
    stage_names,
)
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import (
    CollectionError,
    CollectionMismatchError,
    CollectionNotFoundError,
    ForkedProcessError,
)
from jcv2_plugin.filters import check_filter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from qdrant_client import models

_SIZE_IS_KNOWN_FOR = 30.0  # seconds

T = TypeVar("T")


class OpenCollection:
    """An open collection. A migration does not modify it but replaces it with a new one."""

    def __init__(
        self,
        engine: Engine,
        schema: CollectionSchema,
        encoder: Encoder | None,
        device: str | None,
        own: Mapping[str, FirstStage] | None = None,
    ) -> None:
        self.engine = engine
        self.own = dict(own or {})
        self.schema = schema
        self.device = device
        self._encoder = encoder
        self._stages: list[Stage] | None = None
        self._lock = threading.RLock()
        self._size: int | None = None
        self._size_from = 0.0

    @property
    def encoder(self) -> Encoder:
        """The encoder, loaded and checked on first use."""
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
        """Built-in stages of the first stage, created on first use."""
        with self._lock:
            if self._stages is None:
                schema = self.schema
                built_in = schema.stages.keys() - schema.stage_options.keys()
                self._stages = build_stages(schema.first_stage, self.encoder) if built_in else []
            return self._stages

    @property
    def lacks_stages(self) -> bool:
        """Whether the collection was opened without an object of its first stage."""
        return not self.schema.stage_options.keys() <= self.own.keys()

    def check_own(self, names: Collection[str] | None = None) -> None:
        """Raise CollectionMismatchError unless the user's own first stages, all or those of the names, are there."""
        for name, params in self.schema.stage_options.items():
            if name not in self.own and (names is None or name in names):
                raise CollectionMismatchError(
                    f"{self.engine.title} was created with your own first stage {name!r} ({params}), and is open "
                    f"without its object. Open it with ColbertCollection.open(..., first_stage=...), given the object "
                    "of that name. Without it, exact searches work, but no document can be added."
                )

    def stage_vectors(
        self,
        texts: Sequence[str],
        vectors: Sequence[NDArray[np.float32]],
        tokens: Sequence[list[int]] | None = None,
        own: Sequence[Mapping[str, StageVector]] | None = None,
    ) -> list[dict[str, StageVector]]:
        """Return the first-stage vectors to store for documents, by name.

        ``vectors`` are their token vectors of shape ``(tokens, dim)``; ``tokens``, their token ids, save tokenising
        them again; ``own`` are vectors by the user's own stages, if known. Raises InvalidVectorError if one of these
        returns another thing.
        """
        ids: Sequence[list[int] | None] = [None] * len(texts) if tokens is None else tokens
        found: list[dict[str, StageVector]] = [
            {stage.name: stage.document(text, matrix, own_ids) for stage in self.stages}
            for text, matrix, own_ids in zip(texts, vectors, ids, strict=True)
        ]
        for stages, more in zip(found, self.own_vectors(texts) if own is None else own, strict=True):
            stages.update(more)
        return found

    def own_vectors(self, texts: Sequence[str], names: Collection[str] | None = None) -> list[dict[str, StageVector]]:
        """Return the vectors of documents by the user's own stages, all or those of the names, one dict per text."""
        self.check_own(names)
        chosen = [stage for name, stage in self.own.items() if names is None or name in names]
        return own_vectors(chosen, texts)

    def query_stages(
        self, names: Collection[str], queries: Sequence[str], vectors: Sequence[NDArray[np.float32]]
    ) -> list[dict[str, StageVector]]:
        """Return the first-stage vectors of queries, by name, in the order of ``names``."""
        self.check_own(names)
        own = {name: encode_own(self.own[name], queries, "query") for name in names if name in self.own}
        built_in = {stage.name: stage for stage in self.stages}
        return [
            {name: own[name][position] if name in own else built_in[name].query(query, matrix) for name in names}
            for position, (query, matrix) in enumerate(zip(queries, vectors, strict=True))
        ]

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
    """What the methods of a :class:`~jcv2_plugin.ColbertCollection` share: the open collection and its locks."""

    def __init__(self, current: OpenCollection) -> None:
        self._current = current
        self._process = os.getpid()
        self._writing = threading.RLock()
        self.migrating = threading.Lock()
        self._following = threading.Lock()

    @property
    def current(self) -> OpenCollection:
        """The open collection. A migration replaces it. Raises ForkedProcessError in a forked child."""
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
        """Held by one writer at a time. A migration or snapshot sees each write completely or not at all."""
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

    def scroll(self, filter: models.Filter | None, *, with_payload: bool | list[str]) -> Iterator[Record]:
        """Iterate over the points. If the collection is migrated meanwhile, continue with the new one."""
        check_filter(filter)
        last = ""
        while True:
            current, read = self.current, last
            try:
                for record in current.engine.scroll(filter, with_payload=with_payload):
                    if record.id > read:  # with custom sharding, several shards can contain the same id
                        last = record.id
                        yield record
                return
            except CollectionError as error:
                if not self.replaced(current, error):
                    raise

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
            own = {
                name: current.own[name]
                for name, params in schema.stage_options.items()
                if name in current.own and current.own[name].params == params
            }
            self.current = OpenCollection(moved, schema, current.encoder_for(schema), current.device, own)
            return True


def own_vectors(stages: Sequence[FirstStage], texts: Sequence[str]) -> list[dict[str, StageVector]]:
    """Return the vectors of documents by the user's own stages, one dict per text."""
    encoded = {stage.name: encode_own(stage, texts, "document") for stage in stages}
    return [{name: vectors[position] for name, vectors in encoded.items()} for position in range(len(texts))]


def own_stages(schema: CollectionSchema, first_stage: Any, title: str) -> dict[str, FirstStage]:
    """Return the objects to open a collection with, by name.

    ``first_stage`` is what the user gave: None, ``"none"`` to do without the objects, or what ``create`` takes. Raises
    CollectionMismatchError if the collection has another first stage, or its object is not given.
    """
    stored = schema.stage_options
    if first_stage == "none" or (first_stage is None and not stored):
        return {}
    made = " and ".join(f"{name!r} ({params})" for name, params in stored.items())
    remedy = (
        f"Open it with first_stage= the object with the name and params of {made}, or with first_stage='none' to do "
        "without it: searches are exact then, and no document can be added."
        if stored
        else f"Leave out first_stage, or migrate the collection. It was created with {schema.first_stage!r}."
    )
    if first_stage is None:
        raise CollectionMismatchError(f"{title} was created with your own first stage {made}. {remedy}")
    chosen = ChosenStages.of(first_stage)
    options = chosen.options
    names = stage_names(chosen.name) if options else (chosen.name,)
    given = " and ".join(f"{name!r} ({options[name]})" if name in options else repr(name) for name in names)
    fits = options == dict(stored) and (stored or chosen.name == schema.first_stage)
    if not fits or not set(stage_names(chosen.name)) <= schema.stages.keys():
        raise CollectionMismatchError(f"{title} does not have the first stage {given}. {remedy}")
    return dict(chosen.own)


def load_for(schema: CollectionSchema, model: str, device: str | None, *, named_by_user: bool) -> Encoder:
    """Load an encoder for a schema. Unless the user named it, a server gets no key that was not meant for it."""
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
