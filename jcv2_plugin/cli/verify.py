"""``jcv2 verify``: check a collection's stored documents and vectors."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jcv2_plugin.cli.connection import Connection
from jcv2_plugin.cli.options import ApiKey, Collection, Device, Grpc, Json, Name, Timeout
from jcv2_plugin.console import out, progress_bar, quiet_libraries


def verify(
    collection: Collection,
    sample: Annotated[int, typer.Option(min=0, help="How many documents to encode anew and compare.")] = 20,
    name: Name = "documents",
    api_key: ApiKey = None,
    timeout: Timeout = None,
    grpc: Grpc = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Read every document of a collection, and encode some anew; exit status 1 if anything is wrong."""
    with Connection(collection, name, api_key, timeout, grpc).open(device=device) as opened:
        if sample:
            quiet_libraries()
        with progress_bar("Reading", opened.count()) as advance:
            report = opened.verify(sample=sample, progress=advance)
    if as_json:
        typer.echo(json.dumps({"ok": report.ok, **asdict(report)}))
    else:
        compared = f", the largest 1 - cosine {report.worst:.2g}" if report.encoded else ""
        out.print(
            f"{report.documents} documents counted, {report.read} read with {report.vectors} vectors; "
            f"{report.encoded} encoded anew{compared}.",
            soft_wrap=True,
        )
        for problem in report.problems:
            out.print(f"- {problem}", markup=False, soft_wrap=True)
        out.print(_sum(len(report.problems)))
    if not report.ok:
        raise typer.Exit(1)


def _sum(problems: int) -> str:
    if not problems:
        return "No problems."
    return "1 problem." if problems == 1 else f"{problems} problems."
