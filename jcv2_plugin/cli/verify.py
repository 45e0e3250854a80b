"""``jcv2 verify``: check a collection's stored documents and vectors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.options import Device, Json
from jcv2_plugin.collection.collection import ColbertCollection
from jcv2_plugin.console import message, out, progress_bar, quiet_libraries, remark, to_json


def verify(
    connection: Connection,
    sample: Annotated[int, typer.Option(min=0, help="How many documents to encode again and compare.")] = 20,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="First repair a folder whose write-ahead log cannot be read. What was written last may be missing.",
        ),
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Check every document of a collection. Exit with status 1 if anything is wrong."""
    if repair:
        _repair(connection)
    with connection.open(device=device) as opened:
        if sample:
            quiet_libraries()
        with progress_bar("Reading", opened.count()) as advance:
            report = opened.verify(sample=sample, progress=advance)
    if as_json:
        typer.echo(to_json({"ok": report.ok, **asdict(report)}))
    else:
        compared = f", with a cosine distance of at most {report.worst:.2g}" if report.encoded else ""
        out.print(
            f"{report.documents} documents counted, {report.read} read with {report.vectors} vectors; "
            f"{report.encoded} encoded again{compared}.",
            soft_wrap=True,
        )
        for problem in report.problems:
            out.print(message(f"- {problem}"), soft_wrap=True)
        found = len(report.problems)
        out.print("No problems." if not found else "1 problem." if found == 1 else f"{found} problems.")
    if not report.ok:
        raise typer.Exit(1)


def _repair(connection: Connection) -> None:
    if connection.is_server:
        raise typer.BadParameter(
            f"{connection.shown!r} is a server. Only folders have a write-ahead log of their own.",
            param_hint="--repair",
        )
    with progress_bar("Copying", None) as advance:
        report = ColbertCollection.repair(connection.folder, progress=advance)
    if not report.needed:
        remark("The write-ahead log can be read. There is nothing to repair.")
        return
    remark(
        f"Repaired: {report.documents} documents without the write-ahead log, which cannot be read. What was written "
        "after the folder was last closed may be missing: index the same files again."
    )
    for own_id in report.cut:
        remark(f"- {own_id!r}: metadata that was nested too deeply is gone.")
    for point in report.lost:
        remark(f"- Point {point} could not be read and is gone.")
