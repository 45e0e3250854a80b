"""``jcv2 hand-over``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import typer
from qdrant_client import QdrantClient

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.opening import Wanted, open_or_create
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.qdrant_import import DocumentOf, HandOverReport, hand_over, load_layout, open_source
from jcv2_plugin.console import out, progress_bar, quiet_libraries, remark
from jcv2_plugin.errors import CollectionLockedError, CollectionNotFoundError

_LOCAL_DESCRIPTION = "meta.json"
_NOTHING = 1


@dataclass(frozen=True)
class Source:
    """Where the other collection is: on a server, or in a folder of qdrant-client's local mode."""

    collection: str
    server: Connection | None = None
    folder: Path | None = None

    @classmethod
    def of(
        cls, url: str | None, folder: Path | None, collection: str, api_key: str | None, target: Connection
    ) -> Source:
        """Of what the options say.

        Raises:
            typer.BadParameter: Neither or both of URL and folder are given, or the URL is none.
            CollectionNotFoundError: There is no such folder.
        """
        if (url is None) == (folder is None):
            raise typer.BadParameter("Say where the other collection is by one of --from-url and --from-path.")
        if folder is not None:
            # Opening it would make one that is not there.
            if not (folder.expanduser() / _LOCAL_DESCRIPTION).is_file():
                raise CollectionNotFoundError(
                    f"{str(folder)!r} is no folder of QdrantClient(path=...): it has no {_LOCAL_DESCRIPTION}. Check "
                    "the path; a server's documents are read by --from-url."
                )
            return cls(collection, folder=folder.expanduser())
        server = Connection(str(url), collection, api_key, target.timeout, target.grpc)
        if not server.is_server:
            raise typer.BadParameter(
                f"{url!r} is no address of a server. Write it as http://host:6333.", param_hint="--from-url"
            )
        if api_key is None and server.shown == target.shown:
            server = Connection(str(url), collection, target.api_key, target.timeout, target.grpc)
        return cls(collection, server=server)

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        """Of the server or folder.

        Raises:
            CollectionLockedError: The folder is open elsewhere.
        """
        if self.server is not None:
            with self.server.client() as client:
                yield client
            return
        quiet_libraries()
        try:
            local = QdrantClient(path=str(self.folder))
        except RuntimeError as error:
            raise CollectionLockedError(
                f"{str(self.folder)!r} is open in another process, or by another client ({error}). Close it there."
            ) from error
        try:
            yield local
        finally:
            local.close()


def run_hand_over(
    source: Source,
    layout: str,
    options: Sequence[str],
    connection: Connection,
    wanted: Wanted,
    *,
    workers: int,
    as_json: bool,
) -> None:
    """Hand over, making the target if there is none, and say what was done; exit status 1 if nothing was a document."""
    document_of = load_layout(layout, _options(options))
    with source.client() as client:
        # Counted first: where there is no source, no target is made.
        points = open_source(client, source.collection).count(None)
        with open_or_create(connection, wanted) as target:
            quiet_libraries()
            start = time.perf_counter()
            report = _handed_over(client, source, target, document_of, points, workers)
            result = {
                **asdict(report),
                "documents": target.count(),
                "seconds": round(time.perf_counter() - start, 2),
            }
            _print(result, report, target, as_json=as_json)
    if report.skipped and report.skipped == report.read:
        raise typer.Exit(_NOTHING)


def _handed_over(
    client: QdrantClient,
    source: Source,
    target: ColbertCollection,
    document_of: DocumentOf,
    points: int,
    workers: int,
) -> HandOverReport:
    try:
        with progress_bar("Handing over", points) as advance:
            return hand_over(client, source.collection, target, document_of, progress=advance, workers=workers)
    except KeyboardInterrupt:
        remark(f"Stopped with {target.count()} documents stored. Run the command again to go on.")
        raise


def _options(given: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for one in given:
        key, separator, value = one.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{one!r} is not of the form KEY=VALUE.", param_hint="--option")
        options[key] = value
    return options


def _print(result: dict[str, Any], report: HandOverReport, target: ColbertCollection, *, as_json: bool) -> None:
    if as_json:
        out.print_json(json.dumps(result), indent=None)
    else:
        rate = report.written / result["seconds"] if result["seconds"] else 0.0
        remark(
            f"{report.read} points read: {report.written} documents written, {report.unchanged} unchanged, "
            f"{report.skipped} skipped, in {result['seconds']:.1f} s ({rate:.0f} documents/s)."
        )
        schema = target.schema
        remark(f"{schema.model} at {schema.dim} dims; {result['documents']} documents in the collection.")
    for one in report.first_skipped:
        remark(f"skipped {one.point_id}: {one.reason}")
    if report.skipped > len(report.first_skipped):
        remark(f"... and {report.skipped - len(report.first_skipped)} more.")
    if report.skipped and report.skipped == report.read:
        remark("Not one point holds a document: check --layout, and --option for the payload keys.")
