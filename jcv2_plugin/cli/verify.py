"""``jcv2 verify``: check a collection's stored documents and vectors."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.options import Device, Json
from jcv2_plugin.console import out, progress_bar, quiet_libraries


def verify(
    connection: Connection,
    sample: Annotated[int, typer.Option(min=0, help="How many documents to encode again and compare.")] = 20,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Check every document of a collection. Exit with status 1 if anything is wrong."""
    with connection.open(device=device) as opened:
        if sample:
            quiet_libraries()
        with progress_bar("Reading", opened.count()) as advance:
            report = opened.verify(sample=sample, progress=advance)
    if as_json:
        typer.echo(json.dumps({"ok": report.ok, **asdict(report)}))
    else:
        compared = f", with a cosine distance of at most {report.worst:.2g}" if report.encoded else ""
        out.print(
            f"{report.documents} documents counted, {report.read} read with {report.vectors} vectors; "
            f"{report.encoded} encoded again{compared}.",
            soft_wrap=True,
        )
        for problem in report.problems:
            out.print(f"- {problem}", markup=False, soft_wrap=True)
        found = len(report.problems)
        out.print("No problems." if not found else "1 problem." if found == 1 else f"{found} problems.")
    if not report.ok:
        raise typer.Exit(1)
