"""The ``jcv2`` command: index and search files, explain matches, evaluate models, and manage collections."""

from __future__ import annotations

import sys

from jcv2_plugin.cli.app import app
from jcv2_plugin.errors import Jcv2Error

__all__ = ["app", "main"]

# Error messages mention Python arguments; replace them with command-line options.
_AS_OPTIONS = {
    "pass overwrite=True to replace it": "drop it (jcv2 collections drop; jcv2 restore takes --overwrite)",
    "create the collection anew with overwrite=True": "drop it and index anew",
    "client_options={'timeout': seconds}": "--timeout SECONDS",
    "client_options={'api_key': ...}": "--api-key",
    "collection_options={'sharding_method': 'custom'}": "--shard-key",
    "with shard_key=...": "with --shard-key",
    "leave out shard_key": "leave out --shard-key",
    "retries=...": "--retries",
    "; for gRPC add client_options={'prefer_grpc': True}, and 'grpc_port' if that is not 6334": ", or give a folder",
    "migrate(first_stage=...)": "jcv2 migrate --first-stage",
    " (path=...)": "",
    " (url=...)": "",
    "Leave out candidates and exact, or give it one: migrate(first_stage='hybrid')": (
        "Leave out --candidates, or give it one: jcv2 migrate --first-stage hybrid"
    ),
}


def main() -> None:
    """Run the command. Our exceptions and ``OSError`` end it with a message and status 1, without a traceback."""
    try:
        app()
    except (Jcv2Error, OSError) as error:
        from rich.console import Console
        from rich.markup import escape

        message = str(error)
        for argument, option in _AS_OPTIONS.items():
            message = message.replace(argument, option)
        Console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
        sys.exit(1)
