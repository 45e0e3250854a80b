"""``jcv2 study``: our studies, and those that other packages provide."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from inspect import Signature, signature
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jcv2_plugin.cli.lazy import command_of
from jcv2_plugin.evaluation.study import options as shared
from jcv2_plugin.evaluation.study.base import StudyError
from jcv2_plugin.evaluation.study.options import Device, Documents, Force, Out, Queries, Seeds, listed, numbers


class _Group(TyperGroup):
    """Our studies, and the functions in the entry point group ``jcv2_plugin.studies``."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [
            *self.commands,
            *sorted({one.name for one in entry_points(group=shared.STUDIES)} - self.commands.keys()),
        ]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = [one for one in entry_points(group=shared.STUDIES) if one.name == cmd_name]
        own = super().get_command(ctx, cmd_name)
        return command_of(_load(found[0]), cmd_name) if own is None and found else own


def _load(study: EntryPoint) -> Any:
    try:
        return study.load()
    except ImportError as error:
        reason = f"The study {study.name!r} of {study.value} cannot be loaded: {error}. Install what it needs."

        def refuse() -> None:
            raise StudyError(reason)

        refuse.__doc__ = reason
        return refuse


study_app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    help="Measure models on your own test sets, and write reports with charts.",
)


def _searching(sets: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a command of a function that returns a study of some sets; add the options that such studies share."""

    def decorate(study: Callable[..., Any]) -> Callable[..., Any]:
        def command(
            out: Out,
            model: shared.Model = "mini",
            data: shared.Data = shared.DATA,
            sets: shared.Sets = sets,
            queries: Queries = 200,
            documents: Documents = None,
            seeds: Seeds = 3,
            split: shared.Split = "test",
            document_length: shared.DocumentLength = None,
            dtype: shared.Dtype = None,
            device: Device = None,
            force: Force = False,
            **own: Any,
        ) -> None:
            from jcv2_plugin.evaluation.study.retrieval import Sampling, load_encoder
            from jcv2_plugin.evaluation.study.running import run_study

            load = partial(load_encoder, model, device=device, document_length=document_length, dtype=dtype)
            sampling = Sampling(data, listed(sets), split, queries, documents, seeds)
            run_study(study(load, sampling, **own), out, force=force)

        *options, _ = signature(command, eval_str=True).parameters.values()
        options += list(signature(study, eval_str=True).parameters.values())[2:]
        vars(command).update(__signature__=Signature(options), __doc__=study.__doc__)
        command.__annotations__ = {option.name: option.annotation for option in options}
        return study_app.command(study.__name__, help=study.__doc__)(command)

    return decorate


@_searching("xquad-en,cranfield,cosqa-dev")
def matryoshka(load: Any, sampling: Any, dims: shared.Dims = None) -> Any:
    """Measure quality, bytes and scoring time at each Matryoshka dimension, by set, language and document length."""
    from jcv2_plugin.evaluation.study.matryoshka import MatryoshkaStudy

    return MatryoshkaStudy(load(dims=numbers(dims, "--dims") if dims else None), sampling)


@_searching("xquad-en,xquad-de,xquad-es,xquad-ru,xquad-ar,xquad-hi,xquad-zh,xquad-x-en")
def languages(load: Any, sampling: Any, dim: shared.Dim = None) -> Any:
    """Compare a model with BM25 in each language, and across languages."""
    from jcv2_plugin.evaluation.study.languages import LanguagesStudy

    encoder = load(dims=dim)
    return LanguagesStudy(encoder, sampling, encoder.resolve_dim(dim))


@_searching("xquad-en,cranfield,cosqa-dev")
def masks(
    load: Any,
    sampling: Any,
    dim: shared.Dim = None,
    length: Annotated[int, typer.Option(min=4, help="Tokens of an expanded query.")] = 32,
) -> Any:
    """Compare queries padded with attended [MASK] tokens, with unattended ones, and with none, by query length."""
    from jcv2_plugin.evaluation.study.masks import MasksStudy

    encoder = load(dims=dim)
    return MasksStudy(encoder, sampling, encoder.resolve_dim(dim), length)


@study_app.command()
def lengths(
    out: Out,
    tokens: Annotated[
        str, typer.Option(help="Tokens per text, separated by commas.", metavar="A,B")
    ] = "128,256,512,1024,2048,4096,8192",
    batches: Annotated[str, typer.Option(help="Texts per batch, separated by commas.", metavar="A,B")] = "1,8",
    attention: Annotated[
        str, typer.Option(help="Of eager, sdpa and flash_attention_2, separated by commas.", metavar="A,B")
    ] = "eager,sdpa,flash_attention_2",
    positions: Annotated[
        str, typer.Option(help="Of rotary and absolute, separated by commas.", metavar="A,B")
    ] = "rotary,absolute",
    layers: Annotated[int, typer.Option(min=1, help="Layers of the network, which has random weights.")] = 4,
    hidden: Annotated[int, typer.Option(min=8, help="Hidden size.")] = 256,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads; the hidden size must be a multiple.")] = 4,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. By default bfloat16 on a GPU, float32 on a CPU.")
    ] = None,
    cell_seconds: Annotated[float, typer.Option(min=1, help="A measurement that takes longer is stopped.")] = 60,
    cell_memory: Annotated[
        int, typer.Option(min=256, help="A measurement that takes more memory is stopped.", metavar="MIB")
    ] = 4096,
    seeds: Seeds = 1,
    device: Device = None,
    force: Force = False,
) -> None:
    """Measure time and memory by text length, batch size, attention, and rotary or absolute positions."""
    from jcv2_plugin.evaluation.study.lengths import LengthsStudy
    from jcv2_plugin.evaluation.study.running import run_study

    sizes, texts = numbers(tokens, "--tokens"), numbers(batches, "--batches")
    kinds = listed(attention), listed(positions)
    study = LengthsStudy(sizes, texts, *kinds, layers, hidden, heads, dtype, device, cell_seconds, cell_memory, seeds)
    run_study(study, out, force=force)
