"""Index on a cluster with Ray Data: its workers read, encode and write to a Qdrant server by the documents' ids.

Ray repeats the work of a worker that is lost. Reading a file again gives the same ids, and a document that is stored
already is not encoded again, so nothing is lost and nothing comes twice.
"""

from __future__ import annotations

import json
import logging
import numbers
import os
import pickle
import re
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jcv2_plugin.checks import cut_by_length, in_batches
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.ingest import BATCH_DOCUMENTS
from jcv2_plugin.collection.location import API_KEY, looks_like_server, without_credentials
from jcv2_plugin.collection.sources import PassageReader, SourceError, SourceFile
from jcv2_plugin.collection.workers import WorkerError
from jcv2_plugin.documents import Document
from jcv2_plugin.errors import CollectionAccessError, InvalidDocumentError, InvalidOptionError, Jcv2Error
from jcv2_plugin.files import parse_json
from jcv2_plugin.lazy import require_packages

LOCAL = "local"
BLOCK_BYTES = 2**20
"""Bytes of text that a worker takes at a time, some thousand passages. So much is repeated if it is lost."""
_SECONDS_TO_CONNECT = 10
_PACKAGES = ("ray", "pyarrow", "pandas")


class IndexBatch:
    """Encode and store batches of documents: a class for ``map_batches`` of ``ray.data.Dataset``.

    Each of Ray's workers makes one object, whose first batch opens the collection and loads its model. The collection
    must exist. Documents are stored by their ids, so it changes nothing if Ray repeats a batch after a loss.

    Args:
        location: URL of the Qdrant server.
        **options: Keyword arguments of :meth:`~jcv2_plugin.ColbertCollection.open`. Leave out
            the API key: Ray keeps arguments unencrypted. Workers read it from ``QDRANT_API_KEY`` in their environment.

    Raises:
        InvalidOptionError: The location is not a server's. A folder has one writer.
    """

    def __init__(self, location: str, **options: Any) -> None:
        check_server(location)
        self._location = location
        self._options = options

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, list[int]]:
        """Encode and store the documents of a batch that are new or have changed.

        Args:
            batch: Columns: ``id`` (strings or integers), ``text``, and optionally ``metadata``, as dicts or as the
                text of JSON objects. Other columns are not used. A batch of several times 256 documents is stored
                while it is encoded.

        Returns:
            One row with the number of documents ``written``, ``unchanged`` and ``blank``.

        Raises:
            InvalidDocumentError: A document has no id or cannot be stored, or there is no such column.
        """
        return self._stored(_documents(batch))

    @cached_property
    def _collection(self) -> ColbertCollection:
        return ColbertCollection.open(self._location, **self._options)

    def _stored(self, documents: Iterable[Document]) -> dict[str, list[int]]:
        report = self._collection.ingest(documents)
        return {"written": [report.written], "unchanged": [report.unchanged], "blank": [report.blank]}


def check_server(location: str) -> None:
    """Raise InvalidOptionError for a collection in a folder or in memory, which cannot have many writers."""
    if not looks_like_server(location):
        raise InvalidOptionError(
            f"{location!r} is not a Qdrant server. One process at a time can write to a folder, and a cluster has "
            "many. Give a server (http://host:6333); jcv2 snapshot and jcv2 restore copy its collection to a folder."
        )


def _documents(batch: Mapping[str, Iterable[Any]]) -> list[Document]:
    for name in ("id", "text"):
        if name not in batch:
            raise InvalidDocumentError(
                f"There is no column {name!r}, only {sorted(batch)}. Rename one with Dataset.rename_columns. Documents "
                "need ids of their own: Ray may repeat a batch, and must find them again."
            )
    ids, texts = list(batch["id"]), list(batch["text"])
    metadata = list(batch.get("metadata", [None] * len(ids)))
    return [Document(*one) for one in zip(texts, map(_id, ids), map(_metadata, metadata, ids), strict=True)]


def _id(value: Any) -> str:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value:
        raise InvalidDocumentError(f"The id must be a non-empty str or an int, got {value!r:.60}.")
    return str(value)


def _metadata(value: Any, own_id: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]  # checked when it is stored
    try:
        found = parse_json(value)
    except ValueError as error:
        raise InvalidDocumentError(f"Document {own_id!r}: metadata {value!r:.60} is not JSON ({error}).") from error
    if not isinstance(found, dict):
        raise InvalidDocumentError(f"Document {own_id!r}: metadata {value!r:.60} is not a JSON object.")
    return found


@dataclass
class Outcome:
    """What a worker did.

    ``ids`` are those of the documents that are stored now, ``files`` the numbers of the files that each is from.
    ``written`` of them were encoded, ``unchanged`` were stored already. ``blank`` ones have no text. ``read`` and
    ``skipped`` files were read to the end, or cannot be, with the reason. ``error`` ended the work; what is listed was
    done before.
    """

    files: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    written: int = 0
    unchanged: int = 0
    bytes_read: int = 0
    blank: list[str] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    skipped: list[tuple[int, str]] = field(default_factory=list)
    error: Jcv2Error | None = None


_Rows = dict[str, list[Any]]
"""A block of Ray Data: ``file``, ``id``, ``text`` and ``more`` of documents; or only ``note``, a pickled Outcome.

Ray itself sends everything between its processes pickled.
"""


class ReadFiles:
    """Read files as documents, for ``map_batches``. Errors are noted, so that they reach the driver as they are."""

    def __init__(self, reader: PassageReader, strict: bool) -> None:
        self._reader = reader
        self._strict = strict

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> Iterator[_Rows]:
        """Yield the documents of files, given by the columns ``file`` (a number), ``path`` and ``name`` (bytes)."""
        for number, path, name in zip(batch["file"], batch["path"], batch["name"], strict=True):
            yield from self._rows(int(number), SourceFile(Path(os.fsdecode(path)), os.fsdecode(name)))

    def _rows(self, number: int, file: SourceFile) -> Iterator[_Rows]:
        self._since()  # of a file whose reading was given up
        try:
            documents = self._reader.read(file)
        except SourceError as error:
            yield _noted(Outcome(error=error) if self._strict else self._since(skipped=[(number, str(error))]))
            return
        try:
            for part in cut_by_length(in_batches(documents, BATCH_DOCUMENTS)):
                yield {
                    "file": [number] * len(part),
                    "id": [one.id for one in part],
                    "text": [one.text for one in part],
                    "more": [json.dumps([one.metadata, one.payload]) for one in part],
                    "note": [b""] * len(part),
                }
                yield _noted(self._since())
        except SourceError as error:
            yield _noted(Outcome(error=error))
            return
        yield _noted(self._since(read=[number]))

    def _since(self, **more: Any) -> Outcome:
        outcome = Outcome(bytes_read=self._reader.bytes_read, blank=list(self._reader.blank), **more)
        self._reader.bytes_read = 0
        self._reader.blank.clear()
        return outcome


def _noted(outcome: Outcome) -> _Rows:
    return {"file": [-1], "id": [""], "text": [""], "more": [""], "note": [pickle.dumps(outcome)]}


class IndexDocuments(IndexBatch):
    """Encode and store what :class:`ReadFiles` reads. The result is one row with a pickled :class:`Outcome`."""

    def __call__(self, batch: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """Encode and store the documents of a block, and pass on its notes."""
        outcome = Outcome()
        documents: dict[str, Document] = {}
        columns = (batch[name] for name in ("file", "id", "text", "more", "note"))
        for number, own_id, text, more, note in zip(*columns, strict=True):
            if note:
                _add(outcome, pickle.loads(note))
                continue
            outcome.files.append(int(number))
            outcome.ids.append(str(own_id))  # twice if it is given twice, which is the driver's to refuse
            documents.setdefault(str(own_id), Document(str(text), str(own_id), *json.loads(more)))
        try:
            if documents:
                counts = self._stored(documents.values())
                outcome.written, outcome.unchanged = counts["written"][0], counts["unchanged"][0]
        except Jcv2Error as error:
            outcome = Outcome(error=error)
        return {"outcome": [pickle.dumps(outcome)]}


def _add(outcome: Outcome, note: Outcome) -> None:
    outcome.bytes_read += note.bytes_read
    outcome.blank += note.blank
    outcome.read += note.read
    outcome.skipped += note.skipped
    outcome.error = outcome.error or note.error


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, and the collection that its workers write to.

    Attributes:
        address: Address for ``ray.init``: ``"auto"``, ``"local"`` to start one on this machine, or another.
        location: URL of the Qdrant server.
        options: Keyword arguments of ``ColbertCollection.open`` for the workers. A secret among them is refused.
        encoders: Number of workers that encode. 0 is one for each GPU or, without any, for each core.
    """

    address: str
    location: str
    options: Mapping[str, Any] = field(repr=False)
    encoders: int = 0

    def __post_init__(self) -> None:
        check_server(self.location)
        key = self.options.get("client_options", {}).get("api_key")
        if key not in (None, os.environ.get(API_KEY)) or without_credentials(self.location) != self.location:
            raise InvalidOptionError(
                "A key or password is not sent to the workers of Ray, which would keep it unencrypted. Set "
                f"{API_KEY} here and in the environment of each worker, before ray start."
            )
        require_packages("Indexing on a cluster", _PACKAGES, "ray")

    @property
    def worker_options(self) -> dict[str, Any]:
        """The options as they are sent to workers: without the key, which they have themselves."""
        given = self.options.get("client_options", {})
        return {**self.options, "client_options": {name: value for name, value in given.items() if name != "api_key"}}

    def index(self, files: Sequence[SourceFile], reader: PassageReader, *, strict: bool) -> Generator[Outcome]:
        """Read, encode and store files, at the same paths on all machines, and yield what the workers did, in any
        order.

        With ``strict``, a file that cannot be read ends it. Raises what a worker raised, or WorkerError if one failed
        for another reason. Blocks that others stored in the meantime are kept.
        """
        if not files:
            return
        with _connected(self.address):
            import ray

            try:
                for row in self._dataset(files, reader, strict=strict).iter_rows():
                    outcome: Outcome = pickle.loads(row["outcome"])
                    yield outcome
                    if outcome.error is not None:
                        raise _with_advice(outcome.error)
            except ray.exceptions.RayError as error:
                raise WorkerError(
                    f"A worker of Ray failed: {_last_line(error)} What was stored before stays; run it again to "
                    "continue."
                ) from error

    def _dataset(self, files: Sequence[SourceFile], reader: PassageReader, *, strict: bool) -> Any:
        import ray

        resources = ray.cluster_resources()
        gpus = 0 if self.options.get("device") == "cpu" else int(resources.get("GPU", 0))
        cores = int(resources.get("CPU", 1))
        encoders = self.encoders or gpus or cores
        paths = [
            {"file": number, "path": os.fsencode(file.path.absolute()), "name": os.fsencode(file.name)}
            for number, file in enumerate(files)
        ]
        several: Callable[..., Any] = ray.data.ActorPoolStrategy
        # Beside GPUs, splitting texts keeps cores busy. Encoders on cores keep readers waiting, so these need none.
        return (
            ray.data.from_items(paths)
            .map_batches(
                ReadFiles,
                fn_constructor_args=(reader, strict),
                batch_size=None,
                compute=several(min_size=1, max_size=max(cores, 1)),
                num_cpus=1 if gpus else 0,
            )
            .map_batches(
                IndexDocuments,
                fn_constructor_args=(self.location,),
                fn_constructor_kwargs=self.worker_options,
                batch_size=None,
                compute=several(min_size=1, max_size=encoders, initial_size=encoders),
                **({"num_gpus": 1} if gpus else {"num_cpus": 1}),
            )
        )


def _with_advice(error: Jcv2Error) -> Jcv2Error:
    if isinstance(error, CollectionAccessError):
        return CollectionAccessError(f"{error} Workers of Ray take it from {API_KEY} in their own environment.")
    return error


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[-1] if lines else type(error).__name__}".rstrip(".") + "."


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connect to a cluster unless this process is connected to one, and disconnect at the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports nothing to Ray's makers
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it warns of actors as Ray Data itself makes them
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # else a thread that outlives Ctrl-C starts another cluster
    import ray
    import ray.data

    begins = not ray.is_initialized()
    if begins:
        try:
            if found := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):  # Ray itself would try for minutes
                socket.create_connection((found[1].strip("[]"), int(found[2])), _SECONDS_TO_CONNECT).close()
            more = {"include_dashboard": False} if address == LOCAL else {}
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **more)
        except (OSError, OverflowError, RuntimeError, ValueError) as error:  # ConnectionError is an OSError
            raise InvalidOptionError(
                f"There is no Ray cluster at {address!r}: {_last_line(error)} Start one with ray start --head and join "
                f"it by 'auto', give its address, or write {LOCAL!r} to use this machine only."
            ) from error
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # our words are printed; Ray's own stay in its log files
            handler.setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    wanted = {
        "target_max_block_size": BLOCK_BYTES,
        "enable_progress_bars": False,
        "print_on_execution_start": False,
    }
    before = {name: getattr(context, name) for name in wanted}
    with redirect_stdout(sys.stderr):  # Ray reports lost workers on stdout, some at the end
        try:
            vars(context).update(wanted)
            yield
        finally:
            vars(context).update(before)
            if begins:
                ray.shutdown()
