"""``jcv2 import-qdrant``: import the documents of another Qdrant collection into one of ours."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from qdrant_client import QdrantClient

from jcv2_plugin.cli.connection import Connection, WritingConnection
from jcv2_plugin.cli.options import Json, Workers
from jcv2_plugin.cli.target import Wanted, open_target
from jcv2_plugin.collection import qdrant_import
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.collection.location import without_credentials
from jcv2_plugin.collection.qdrant_import import ImportReport, load_layout, source_engine
from jcv2_plugin.console import progress_bar, quiet_libraries, remark, to_json
from jcv2_plugin.errors import CollectionLockedError, CollectionNotFoundError

_LOCAL_DESCRIPTION = "meta.json"
_NOTHING = 1


def source_server(url: str, api_key: str | None, target: Connection) -> Connection:
    """Return the connection to the source's server. On the target's own server, the target's key is used."""
    server = Connection(url, api_key=api_key, timeout=target.timeout, grpc=target.grpc)
    if not server.is_server:
        raise typer.BadParameter(
            f"{without_credentials(url)!r} is not the URL of a server. Write it as http://host:6333.",
            param_hint="--from-url",
        )
    if api_key is None and server.shown == target.shown:
        server = replace(server, api_key=target.api_key)
    return server


@contextmanager
def source_client(folder: Path) -> Iterator[QdrantClient]:
    """Yield a client of qdrant-client's local mode for a folder, unless it is missing or open elsewhere."""
    # Check first, because opening a missing folder would create it.
    if not (folder / _LOCAL_DESCRIPTION).is_file():
        raise CollectionNotFoundError(
            f"{str(folder)!r} is no folder of QdrantClient(path=...): it has no {_LOCAL_DESCRIPTION}. Check the path. "
            "For a server, use --from-url."
        )
    quiet_libraries()
    try:
        local = QdrantClient(path=str(folder))
    except RuntimeError as error:
        raise CollectionLockedError(
            f"{str(folder)!r} is open in another process, or by another client ({error}). Close it there."
        ) from error
    with closing(local):
        yield local


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
    if (from_url is None) == (from_path is None):
        raise typer.BadParameter("Give either --from-url or --from-path, for the collection to import.")
    opened = source_client((from_path or Path()).expanduser())
    if from_url is not None:
        opened = source_server(from_url, from_api_key, connection).client()
    document_of = load_layout(layout, _options(option or []))
    with opened as client:
        # Count first, so that no target is created if the source does not exist.
        points = source_engine(client, from_collection).count(None)
        with open_target(connection, wanted) as target:
            quiet_libraries()
            start = time.perf_counter()
            try:
                with progress_bar("Importing", points) as advance:
                    report = qdrant_import.import_qdrant(
                        client, from_collection, target, document_of, progress=advance, workers=workers
                    )
            except KeyboardInterrupt:
                remark(f"Stopped with {target.count()} documents stored. Run the command again to continue.")
                raise
            _print(report, target, round(time.perf_counter() - start, 2), as_json=as_json)
    if report.skipped and report.skipped == report.read:
        raise typer.Exit(_NOTHING)


def _options(given: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for one in given:
        key, separator, value = one.partition("=")
        if not separator or not key:
            raise typer.BadParameter(f"{one!r} is not of the form KEY=VALUE.", param_hint="--option")
        options[key] = value
    return options


def _print(report: ImportReport, target: ColbertCollection, seconds: float, *, as_json: bool) -> None:
    documents = target.count()
    if as_json:
        typer.echo(to_json({**asdict(report), "documents": documents, "seconds": seconds}))
    else:
        rate = report.written / seconds if seconds else 0.0
        remark(
            f"{report.read} points read: {report.written} documents written, {report.unchanged} unchanged, "
            f"{report.skipped} skipped, in {seconds:.1f} s ({rate:.0f} documents/s)."
        )
        remark(f"{target.schema.model} at {target.schema.dim} dims; {documents} documents in the collection.")
    for one in report.first_skipped:
        remark(f"skipped {one.point_id}: {one.reason}")
    if report.skipped > len(report.first_skipped):
        remark(f"... and {report.skipped - len(report.first_skipped)} more.")
    if report.skipped and report.skipped == report.read:
        remark("No point has a document. Check --layout, and --option for the payload keys.")
