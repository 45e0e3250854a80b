"""``jcv2 study``: our studies, and those that other packages provide."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jcv2_plugin.cli.lazy import command_of
from jcv2_plugin.evaluation.study.base import STUDIES, StudyError
from jcv2_plugin.evaluation.study.options import (
    DATA,
    Data,
    Device,
    DocumentLength,
    Documents,
    Dtype,
    Force,
    Model,
    Out,
    Queries,
    Seeds,
    Sets,
    Split,
    listed,
    number,
)


class _Group(TyperGroup):
    """Command group that loads studies from entry points only when they are requested."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *sorted(one.name for one in _foreign() if one.name not in self.commands)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        found = next((one for one in _foreign() if one.name == cmd_name), None)
        return None if found is None else command_of(_load(found), cmd_name)


def _foreign() -> list[EntryPoint]:
    return list(entry_points(group=STUDIES))


def _load(study: EntryPoint) -> Callable[..., None]:
    try:
        function: Callable[..., None] = study.load()
    except ImportError as error:
        reason = f"The study {study.name!r} of {study.value} cannot be loaded: {error}. Install what it needs."

        def function() -> None:
            raise StudyError(reason)

        function.__doc__ = reason
    return function


study_app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    help="Measure what the figures of other models and sets would be on yours, and write reports with pictures.",
)


@study_app.command()
def matryoshka(
    out: Out,
    model: Model = "mini",
    data: Data = DATA,
    sets: Sets = "xquad-en,cranfield,cosqa-dev",
    dims: Annotated[
        str | None, typer.Option(help="Heads to measure, with commas between; all if not given.", metavar="A,B")
    ] = None,
    queries: Queries = 200,
    documents: Documents = None,
    seeds: Seeds = 3,
    split: Split = "test",
    document_length: DocumentLength = None,
    dtype: Dtype = None,
    device: Device = None,
    force: Force = False,
) -> None:
    """Measure quality, bytes and scoring time at each Matryoshka dimension, by set, language and document length."""
    from jcv2_plugin.evaluation.study.matryoshka import MatryoshkaStudy
    from jcv2_plugin.evaluation.study.retrieval import Sampling, load_encoder
    from jcv2_plugin.evaluation.study.running import run_study

    wanted = None if dims is None else tuple(number(one, "--dims") for one in listed(dims))
    encoder = load_encoder(model, dims=wanted, device=device, document_length=document_length, dtype=dtype)
    sampling = Sampling(data, listed(sets), split, queries, documents, seeds)
    run_study(MatryoshkaStudy(encoder, sampling), out, force=force)


@study_app.command()
def languages(
    out: Out,
    model: Model = "mini",
    data: Data = DATA,
    sets: Sets = "xquad-en,xquad-de,xquad-es,xquad-ru,xquad-ar,xquad-hi,xquad-zh,xquad-x-en",
    dim: Annotated[int | None, typer.Option(help="Matryoshka dimension; the model's first if not given.")] = None,
    queries: Queries = 200,
    documents: Documents = None,
    seeds: Seeds = 3,
    split: Split = "test",
    document_length: DocumentLength = None,
    dtype: Dtype = None,
    device: Device = None,
    force: Force = False,
) -> None:
    """Compare a model with BM25 in each language, and across languages."""
    from jcv2_plugin.evaluation.study.languages import LanguagesStudy
    from jcv2_plugin.evaluation.study.retrieval import Sampling, load_encoder
    from jcv2_plugin.evaluation.study.running import run_study

    encoder = load_encoder(model, dims=dim, device=device, document_length=document_length, dtype=dtype)
    sampling = Sampling(data, listed(sets), split, queries, documents, seeds)
    run_study(LanguagesStudy(encoder, encoder.resolve_dim(dim), sampling), out, force=force)


@study_app.command()
def masks(
    out: Out,
    model: Model = "mini",
    data: Data = DATA,
    sets: Sets = "xquad-en,cranfield,cosqa-dev",
    dim: Annotated[int | None, typer.Option(help="Matryoshka dimension; the model's first if not given.")] = None,
    length: Annotated[int, typer.Option(min=4, help="Tokens that an expanded query has.")] = 32,
    queries: Queries = 200,
    documents: Documents = None,
    seeds: Seeds = 3,
    split: Split = "test",
    document_length: DocumentLength = None,
    dtype: Dtype = None,
    device: Device = None,
    force: Force = False,
) -> None:
    """Compare queries padded with attended [MASK] tokens, with unattended ones, and with none, by query length."""
    from jcv2_plugin.evaluation.study.masks import MasksStudy
    from jcv2_plugin.evaluation.study.retrieval import Sampling, load_encoder
    from jcv2_plugin.evaluation.study.running import run_study

    encoder = load_encoder(model, dims=dim, device=device, document_length=document_length, dtype=dtype)
    sampling = Sampling(data, listed(sets), split, queries, documents, seeds)
    run_study(MasksStudy(encoder, encoder.resolve_dim(dim), sampling, length), out, force=force)


@study_app.command()
def lengths(
    out: Out,
    tokens: Annotated[
        str, typer.Option(help="Lengths of texts, with commas between.", metavar="A,B")
    ] = "128,256,512,1024,2048,4096,8192",
    batches: Annotated[str, typer.Option(help="Texts a batch, with commas between.", metavar="A,B")] = "1,8",
    attention: Annotated[
        str, typer.Option(help="Of eager, sdpa and flash_attention_2, with commas between.", metavar="A,B")
    ] = "eager,sdpa,flash_attention_2",
    positions: Annotated[
        str, typer.Option(help="Of rotary and absolute, with commas between.", metavar="A,B")
    ] = "rotary,absolute",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the network, whose weights are random.")] = 4,
    hidden: Annotated[int, typer.Option(min=8, help="Its width.")] = 256,
    heads: Annotated[int, typer.Option(min=1, help="Its attention heads; they divide the width.")] = 4,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; bfloat16 on a GPU, else float32, if not given.")
    ] = None,
    cell_seconds: Annotated[float, typer.Option(min=1, help="A cell that takes longer is stopped, and says so.")] = 60,
    cell_memory: Annotated[
        int, typer.Option(min=256, help="A cell that takes more memory is stopped, and says so.", metavar="MIB")
    ] = 4096,
    seeds: Seeds = 1,
    device: Device = None,
    force: Force = False,
) -> None:
    """Measure time and memory by text length, batch size, attention, and rotary or absolute positions."""
    from jcv2_plugin.evaluation.study.lengths import LengthsStudy, Limits, Network
    from jcv2_plugin.evaluation.study.running import run_study

    network = Network.of(layers, hidden, heads, dtype=dtype, device=device)
    study = LengthsStudy(
        network,
        Limits(cell_seconds, cell_memory),
        lengths=tuple(number(one, "--tokens") for one in listed(tokens)),
        batches=tuple(number(one, "--batches") for one in listed(batches)),
        attention=listed(attention),
        positions=listed(positions),
        seeds=seeds,
    )
    run_study(study, out, force=force)
