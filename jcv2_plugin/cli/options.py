"""Options shared by several subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from jcv2_plugin.engines.first_stage import FIRST_STAGES
from jcv2_plugin.engines.storage import STORAGES

Collection = Annotated[
    str, typer.Option("--collection", "-c", help="A folder (embedded Qdrant Edge) or a Qdrant server's URL.")
]
Name = Annotated[str, typer.Option(help="The collection's name on a server; a folder holds just one.")]
ApiKey = Annotated[str | None, typer.Option(envvar="QDRANT_API_KEY", help="For a server.", show_envvar=True)]
Timeout = Annotated[
    int | None, typer.Option(min=1, help="Seconds to wait for a server's answer; 5 if not given.", metavar="SECONDS")
]
Grpc = Annotated[bool, typer.Option("--grpc", help="Talk to a server by gRPC, on its port 6334.")]
Retries = Annotated[
    int | None, typer.Option(min=1, help="Attempts at each request to a server; 5 if not given, 1 tries once.")
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...; the best there is by default.")]
Workers = Annotated[
    int, typer.Option(min=0, help="Encode in so many processes, one for each GPU where there are any; 0 in this one.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead.")]

STORAGES_HELP = f"How vectors are kept: {', '.join(STORAGES)}"
FIRST_STAGES_HELP = f"What finds the candidates that MaxSim ranks: {', '.join(FIRST_STAGES)}"
POOL_HELP = "Merge neighbouring token vectors until one in so many is left; 1 merges none"
