"""Options shared by several subcommands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from jcv2_plugin.engines.first_stage import FIRST_STAGES
from jcv2_plugin.engines.storage import STORAGES, storage_profile
from jcv2_plugin.errors import InvalidOptionError

STORAGES_HELP = f"How vectors are stored: {', '.join(STORAGES)}"
FIRST_STAGES_HELP = f"What finds the candidates that MaxSim ranks: {', '.join(FIRST_STAGES)}"
POOL_HELP = "Token pooling: merge neighbouring token vectors until one in this many is left; 1 merges none"

Device = Annotated[str | None, typer.Option(help="Device of the model, such as cpu or cuda. Default: the best one.")]
Workers = Annotated[
    int, typer.Option(min=0, help="Encode in this many processes, one per GPU if there are any; 0 uses this process.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class Settings:
    """Settings of a collection; None for options that were not given."""

    model: Annotated[str | None, typer.Option(help="Name or folder of the model, or address of an encoder.")] = None
    dim: Annotated[int | None, typer.Option(help="Matryoshka dimension.")] = None
    storage: Annotated[str | None, typer.Option(help=f"{STORAGES_HELP}.")] = None
    first_stage: Annotated[str | None, typer.Option(help=f"{FIRST_STAGES_HELP}.")] = None
    pool_factor: Annotated[float | None, typer.Option(help=f"{POOL_HELP}.")] = None

    def check_names(self) -> None:
        """Reject an unknown storage or first stage before a model is loaded."""
        if self.storage is not None:
            storage_profile(self.storage)
        if self.first_stage is not None and self.first_stage not in FIRST_STAGES:
            raise InvalidOptionError(f"first_stage must be one of {FIRST_STAGES}, got {self.first_stage!r}.")
