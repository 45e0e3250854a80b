"""``jcv2 serve``: serve a model over HTTP."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from jcv2_plugin.cli.options import Device
from jcv2_plugin.console import quiet_libraries, remark
from jcv2_plugin.encoder import DEFAULT_MODEL
from jcv2_plugin.encoder.protocol import KEY_VARIABLE
from jcv2_plugin.lazy import require_packages


def serve(
    model: Annotated[str, typer.Option(help="Name or folder of the model.")] = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8080,
    dims: Annotated[list[int] | None, typer.Option(help="Matryoshka dimension to load; repeat it for several.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model for clients. Default: its own.")] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(
            help=f"Environment variable with the key, or several with commas. Default: {KEY_VARIABLE}, if set."
        ),
    ] = None,
    document_length: Annotated[int | None, typer.Option(help="Window for documents, in tokens.")] = None,
    max_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens to encode in one go. Default: by the device.")
    ] = None,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that may wait. More get status 429.")] = 128,
    max_body_mib: Annotated[int, typer.Option(min=1, help="MiB of a request. Larger ones get status 413.")] = 4,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts of a request.")] = 1024,
    max_request_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a request.")] = 2**18,
    stop_seconds: Annotated[int, typer.Option(min=1, help="Seconds that requests may run on after SIGTERM.")] = 60,
    device: Device = None,
) -> None:
    """Serve a model over HTTP: token vectors, and reranking.

    Stop it with SIGTERM or Ctrl-C: it finishes the requests that run. Its OpenAPI page is /docs.
    """
    from jcv2_plugin.serving.run import PACKAGES, reserve, run, url_of

    require_packages("A server", PACKAGES, "serve")
    from jcv2_plugin.serving.settings import ServerSettings

    settings = ServerSettings(
        name=name,
        keys=_keys(api_key_env),
        max_batch_tokens=max_batch_tokens,
        max_waiting=max_waiting,
        max_body=max_body_mib * 2**20,
        max_texts=max_texts,
        max_request_tokens=max_request_tokens,
    )
    with reserve(host, port) as bound:
        quiet_libraries()
        from jcv2_plugin.encoder.model import JinaColbertEncoder
        from jcv2_plugin.serving.app import create_app

        encoder = JinaColbertEncoder.from_pretrained(
            model, dims=dims or None, device=device, document_length=document_length
        )
        app = create_app(encoder, settings)
        if not settings.keys:
            remark(f"There is no key: everyone who can reach {host} can use the model. See --api-key-env.")
        served = app.state.service.name

        def started() -> None:
            remark(f"Serving {served} with {', '.join(map(str, encoder.dims))} dimensions at {url_of(bound)}")

        run(app, bound, stop_seconds=stop_seconds, started=started)


def _keys(variable: str | None) -> tuple[str, ...]:
    value = os.environ.get(variable or KEY_VARIABLE, "")
    if variable is not None and not value.strip():
        raise typer.BadParameter(f"The environment variable {variable} is empty.", param_hint="--api-key-env")
    return tuple(key.strip() for key in value.split(",")) if value.strip() else ()
