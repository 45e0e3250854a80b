"""``jcv2 import-qdrant``: import the documents of another Qdrant collection into one of ours."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from qdrant_client import QdrantClient

from jcv2_plugin.cli.connection import Connection, WritingConnection
from jcv2_plugin.cli.options import Json, Workers
from jcv2_plugin.cli.target import Wanted, open_target
from jcv2_plugin.collection import qdrant_import
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.qdrant_import import DocumentOf, ImportReport, load_layout, source_engine
from jcv2_plugin.console import out, progress_bar, quiet_libraries, remark
from jcv2_plugin.errors import CollectionLockedError, CollectionNotFoundError

_LOCAL_DESCRIPTION = "meta.json"
_NOTHING = 1


@dataclass(frozen=True)
class ImportSource:
    """The source collection, on a server or in a folder of qdrant-client's local mode."""

    collection: str
    server: Connection | None = None
    folder: Path | None = None

    @classmethod
    def of(
        cls, url: str | None, folder: Path | None, collection: str, api_key: str | None, target: Connection
    ) -> ImportSource:
        """Create the source from the command-line options.

        Raises:
            typer.BadParameter: If neither or both of URL and folder are given, or the URL is invalid.
            CollectionNotFoundError: If there is no such folder.
        """
        if (url is None) == (folder is None):
            raise typer.BadParameter("Say where the other collection is by one of --from-url and --from-path.")
        if folder is not None:
            # Check first, because opening a missing folder would create it.
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
        """Yield a client for the server or folder.

        Raises:
            CollectionLockedError: If the folder is open elsewhere.
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


def import_qdrant(
    connection: WritingConnection,
    wanted: Wanted,
    from_collection: Annotated[str, typer.Option(help="The other collection's name.")],
    layout: Annotated[str, typer.Option(help="How its payloads are laid out, such as langchain or llama-index.")],
    from_url: Annotated[str | None, typer.Option(help="The Qdrant server where it is.")] = None,
    from_path: Annotated[
        Path | None,
        typer.Option(help="Instead of a server: a folder that qdrant-client keeps, QdrantClient(path=...)."),
    ] = None,
    from_api_key: Annotated[
        str | None,
        typer.Option(
            envvar="QDRANT_FROM_API_KEY",
            show_envvar=True,
            help="For that server; --api-key if not given and both are on one.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the layout, such as content_key=text. Repeatable."),
    ] = None,
    workers: Workers = 0,
    as_json: Json = False,
) -> None:
    """Encode the documents of another Qdrant collection, such as LangChain's or LlamaIndex's, into one of ours.

    The other collection is only read. If the command is interrupted, run it again to continue. A later run encodes only
    new and changed documents.
    """
    source = ImportSource.of(from_url, from_path, from_collection, from_api_key, connection)
    document_of = load_layout(layout, _options(option or []))
    with source.client() as client:
        # Count first, so that no target is created if the source does not exist.
        points = source_engine(client, source.collection).count(None)
        with open_target(connection, wanted) as target:
            quiet_libraries()
            start = time.perf_counter()
            report = _imported(client, source, target, document_of, points, workers)
            result = {
                **asdict(report),
                "documents": target.count(),
                "seconds": round(time.perf_counter() - start, 2),
            }
            _print(result, report, target, as_json=as_json)
    if report.skipped and report.skipped == report.read:
        raise typer.Exit(_NOTHING)


def _imported(
    client: QdrantClient,
    source: ImportSource,
    target: ColbertCollection,
    document_of: DocumentOf,
    points: int,
    workers: int,
) -> ImportReport:
    try:
        with progress_bar("Importing", points) as advance:
            return qdrant_import.import_qdrant(
                client, source.collection, target, document_of, progress=advance, workers=workers
            )
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


def _print(result: dict[str, Any], report: ImportReport, target: ColbertCollection, *, as_json: bool) -> None:
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
