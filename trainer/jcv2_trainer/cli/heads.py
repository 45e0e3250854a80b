"""The commands that add projection heads to a backbone: ``assemble``, ``principal-heads`` and ``heads``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jcv2_plugin.errors import Jcv2Error
from jcv2_trainer.cli.commands import failing_politely, quiet_libraries
from jcv2_trainer.data.reading import sample_texts
from jcv2_trainer.folders import replacing

if TYPE_CHECKING:
    from jcv2_trainer.heads.score_keeping import FittedHeads

_HEADS_FILES = {"config.json", "model.safetensors"}


def register(app: typer.Typer) -> None:
    """Add the commands ``assemble``, ``principal-heads`` and ``heads`` to an app."""
    app.command("assemble")(_assemble)
    app.command("principal-heads")(_principal_heads)
    app.command("heads")(_heads)


def _assemble(
    backbone: Annotated[str, typer.Argument(help="Folder of an encoder (from mlm, convert, or any BERT), or 'mini'.")],
    data: Annotated[Path, typer.Option(help="A file of pairs or triplets; the heads are fitted to its texts.")],
    out: Annotated[Path, typer.Option(help="The folder to write the encoder to.")],
    dims: Annotated[
        str, typer.Option(help="Dimensions of the heads, the default one first.")
    ] = "128,64,96,256,512,768",
    query_length: Annotated[
        int, typer.Option(min=1, help="Tokens of each query; shorter ones are filled up with masks.")
    ] = 32,
    document_length: Annotated[int, typer.Option(min=1, help="Tokens of a document at most.")] = 300,
    skiplist: Annotated[
        Literal["stanford", "pieces", "none"],
        typer.Option(help="Which punctuation of documents is not scored: as Stanford's ColBERT, each piece, or none."),
    ] = "stanford",
    markers: Annotated[
        bool, typer.Option("--markers/--no-markers", help="Begin queries and documents with a marker each.")
    ] = True,
    texts: Annotated[int, typer.Option(min=2, help="Size of the sample: half queries, half positives.")] = 3000,
    seed: Annotated[int, typer.Option(help="Of the shuffle that draws the sample.")] = 13,
    lang: Annotated[str | None, typer.Option(help="Only rows with this lang; all if not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in the folder.")] = False,
) -> None:
    """Build an encoder from a backbone: marker tokens, query expansion and untrained projection heads, ready for pairs.

    The heads are principal components of the hidden states. The exit status is 2 if the encoder cannot be built.
    """
    wanted = tuple(_parse_dims(dims))
    with failing_politely():
        quiet_libraries()
        from jcv2_trainer.training.assemble import Assembly, assemble

        settings = Assembly(
            dims=wanted,
            query_length=query_length,
            document_length=document_length,
            skiplist=None if skiplist == "none" else skiplist,
            markers=markers,
            texts=texts,
            seed=seed,
            lang=lang,
        )
        with _bar("texts", texts) as progress:
            report = assemble(backbone, data, out, settings, force=force, progress=progress)
    typer.echo(
        f"{out}: an encoder over {backbone!r}, {report.parameters:,} parameters. Its heads are not trained; they are "
        f"fitted to {report.queries:,} queries and {report.positives:,} positives."
    )
    _show_shares(report.captured)
    if report.added_tokens:
        typer.echo(f"  new tokens: {', '.join(report.added_tokens)}")
    typer.echo(f"  Next, train it: jcv2-finetune pairs DATA... --model {out} --out DIR")


def _principal_heads(
    data: Annotated[Path, typer.Argument(help="A file of pairs or triplets; its texts are the sample.")],
    out: Annotated[Path, typer.Option(help="The folder to write the heads to.")],
    model: Annotated[
        str, typer.Option(help="A shipped model, for its backbone, or a folder of a transformers model.")
    ] = "mini",
    dims: Annotated[str, typer.Option(help="Dimensions of the heads, the default one first.")] = "128,32,64,96,256,384",
    texts: Annotated[int, typer.Option(min=2, help="Size of the sample: half queries, half positives.")] = 3000,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps in which heads learn to rank as whole states do; 0 for none.")
    ] = 400,
    seed: Annotated[int, typer.Option(help="Of the shuffle that draws the sample, and of the steps.")] = 13,
    lang: Annotated[str | None, typer.Option(help="Only rows with this lang; all if not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the heads that are in the folder.")] = False,
) -> None:
    """Fit projection heads without labels: principal components of the hidden states, trained to preserve MaxSim.

    The hidden states are computed once and held in memory (230 MB for 3,000 texts of 100 tokens with a small backbone).
    The exit status is 2 if the heads cannot be fitted or written.
    """
    wanted = _parse_dims(dims)
    with failing_politely(), replacing(out, partial(_refuse_occupied, force=force)) as folder:
        queries, positives = sample_texts(data, texts, seed, lang)
        fitted = _fit(model, queries, positives, wanted, steps, seed)
        fitted.heads.save(str(folder))
    typer.echo(f"{out}: heads for {model!r}, from {len(queries):,} queries and {len(positives):,} positives.")
    _show_shares(fitted.captured)
    if steps:
        typer.echo("What MaxSim's differences between passages lose, as a share of their variance:")
    for dim, error in fitted.errors.items() if steps else ():
        typer.echo(f"  {dim:>5} dimensions lose {error:.2%} (principal components: {fitted.component_errors[dim]:.2%})")


def _heads(
    data: Annotated[list[Path], typer.Argument(help="Files of pairs and triplets.")],
    out: Annotated[Path, typer.Option(help="The folder to write the heads to.")],
    model: Annotated[
        str, typer.Option(help="A shipped model, for its backbone, or a folder of a transformers model.")
    ] = "mini-multilingual",
    dims: Annotated[str, typer.Option(help="Dimensions of the heads, the default one first.")] = "128,32,64,96,256,384",
    rows: Annotated[int, typer.Option(min=1, help="Rows of each source and language, at most.")] = 600,
    negatives: Annotated[int, typer.Option(min=0, help="Hard negatives of a triplet, at most.")] = 2,
    document_length: Annotated[int, typer.Option(min=3, help="Tokens a passage is cut to.")] = 320,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 500,
    batch_size: Annotated[int, typer.Option(min=2, help="Queries a step, all in one language.")] = 48,
    learning_rate: Annotated[float, typer.Option(min=1e-6, max=1.0, help="Of the heads.")] = 1e-3,
    distillation: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of what smaller heads learn from the largest one.")
    ] = 0.5,
    dev_every: Annotated[int, typer.Option(min=0, help="Set one in so many passages aside; 0 for none.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the draw of rows, and of the batches.")] = 13,
    force: Annotated[bool, typer.Option("--force", help="Replace the heads that are in the folder.")] = False,
) -> None:
    """Train projection heads on pairs and triplets over a frozen backbone.

    The hidden states are computed once and held in memory (1.5 GB for 10,000 passages of 200 tokens with a small
    backbone), so a CPU trains all heads in minutes. The exit status is 2 if they cannot be trained or written.
    """
    wanted = _parse_dims(dims)
    with failing_politely(), replacing(out, partial(_refuse_occupied, force=force)) as folder:
        quiet_libraries()
        from jcv2_trainer.heads.frozen import FrozenTexts, TokenStates, dev_ndcg, moment_of, train_heads, whitened_heads
        from jcv2_trainer.heads.principal import load_backbone, principal_heads, prompts_of

        texts = FrozenTexts.read(
            data, rows=rows, negatives=negatives, dev_every=dev_every, dev_rows=max(1, rows // 10), seed=seed
        )
        backbone, prompts = load_backbone(model), prompts_of(model)
        _refuse_large(model, int(backbone.get_embedding_dimension()), wanted)
        backbone.max_seq_length = min(document_length, backbone.max_seq_length or document_length)
        with _bar("texts", len(texts.queries) + len(texts.passages)) as done:
            queries = TokenStates.of(backbone, texts.queries, prompts.get("query", ""), done)
            passages = TokenStates.of(backbone, texts.passages, prompts.get("document", ""), done)
        moment = moment_of(queries, passages, 1500, seed)
        with _bar("steps", steps) as done:
            heads = train_heads(
                whitened_heads(moment, wanted),
                texts,
                queries,
                passages,
                steps=steps,
                batch_size=batch_size,
                learning_rate=learning_rate,
                distillation=distillation,
                seed=seed,
                progress=done,
            )
        heads.save(str(folder))
        both = (principal_heads(moment, wanted), heads)
        figures = [dev_ndcg({dim: one.weight(dim) for dim in wanted}, texts, queries, passages) for one in both]
    typer.echo(f"{out}: heads for {model!r}, from {len(texts.examples):,} rows.")
    if texts.dev:
        typer.echo(f"nDCG@10 of {len(texts.dev):,} rows that were set aside, principal components and trained heads:")
    for dim in wanted if texts.dev else ():
        before, after = (fmean(row[dim] for row in one.values()) for one in figures)
        typer.echo(f"  {dim:>5} dimensions  {before:.4f} -> {after:.4f}")


def _refuse_large(model: str, hidden: int, dims: list[int]) -> None:
    if max(dims) > hidden:
        raise Jcv2Error(
            f"The backbone {model!r} has states of {hidden} components, so no head of {max(dims)} can be fitted. "
            f"Give --dims of at most {hidden}."
        )


def _show_shares(shares: dict[int, float]) -> None:
    for dim, share in shares.items():
        typer.echo(f"  {dim:>5} dimensions hold {share:.1%} of the token states' squared length")


def _fit(model: str, queries: list[str], positives: list[str], dims: list[int], steps: int, seed: int) -> FittedHeads:
    from jcv2_trainer.heads.principal import load_backbone, prompts_of
    from jcv2_trainer.heads.score_keeping import fit_heads

    quiet_libraries()
    backbone = load_backbone(model)
    _refuse_large(model, int(backbone.get_embedding_dimension()), dims)
    with _bar("texts", len(queries) + len(positives)) as texts_done, _bar("steps", steps) as steps_done:
        return fit_heads(
            backbone,
            queries,
            positives,
            dims,
            prompts=prompts_of(model),
            steps=steps,
            seed=seed,
            texts_done=texts_done,
            steps_done=steps_done,
        )


def _parse_dims(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    dims = [int(part) for part in parts if part.isdecimal()]
    if len(dims) != len(parts) or min(dims) < 1 or len(set(dims)) != len(dims):
        raise typer.BadParameter(f"--dims takes distinct positive integers, such as 128,64; got {text!r}.")
    return dims


@contextmanager
def _bar(unit: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on a terminal, and nothing in a pipe."""
    from tqdm import tqdm

    with tqdm(total=total, unit=f" {unit}", disable=None) as bar:
        yield bar.update


def _refuse_occupied(out: Path, force: bool) -> None:
    """Raise if ``out`` contains anything, or with ``force`` anything but heads."""
    if out.exists() and not out.is_dir():
        raise Jcv2Error(f"{out} is no folder. Choose another --out.")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if names - _HEADS_FILES:
        raise Jcv2Error(f"{out} holds other files than heads ({min(names - _HEADS_FILES)}). Choose another --out.")
    if names and not force:
        raise Jcv2Error(f"{out} holds heads already. Choose another --out, or replace them with --force.")
