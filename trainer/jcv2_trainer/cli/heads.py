"""The commands that add projection heads to a backbone: ``assemble``, ``principal-heads`` and ``heads``."""

from __future__ import annotations

from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.files import new_folder
from jcv2_trainer.cli.commands import (
    failing_politely,
    progress_bar,
    quiet_libraries,
    recipe_command,
    say,
    with_pooling,
)
from jcv2_trainer.data.reading import sample_texts
from jcv2_trainer.recipes.settings import Assembly, Dims, PoolFactors

_HEADS_FILES = {"config.json", "model.safetensors"}


def _parsed(kind: Any, text: str, rule: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(text)
    except ValidationError as error:
        raise typer.BadParameter(f"{rule}; got {text!r}.") from error


def _parse_dims(text: str) -> tuple[int, ...]:
    dims: tuple[int, ...] = _parsed(Dims, text, "--dims must be distinct positive integers, such as 128,64")
    return dims


def _parse_factors(text: str) -> tuple[float, ...]:
    rule = "--pool-factors must be distinct numbers from 1 (no pooling) to 100, such as 1,2,4"
    factors: tuple[float, ...] = _parsed(PoolFactors, text, rule)
    return factors


HeadsOut = Annotated[Path, typer.Option(help="Folder to write the heads to.")]
HeadsForce = Annotated[bool, typer.Option("--force", help="Replace the heads that are in the folder.")]
Backbone = Annotated[str, typer.Option(help="A shipped model, for its backbone, or a folder of a transformers model.")]
HeadsDims = Annotated[str, typer.Option(help="Dimensions of the heads, the default one first.")]
HeadsFactors = Annotated[
    str, typer.Option(help="Token pooling factors of passages to train for, such as 1,2,4. 1 is without pooling.")
]
_DIMS = "128,32,64,96,256,384"


@recipe_command(Assembly, "assemble")
def assemble(
    backbone: Annotated[str, typer.Argument(help="Folder of an encoder (from mlm, convert, or any BERT), or 'mini'.")],
    data: Annotated[Path, typer.Option(help="A file of pairs or triplets, to whose texts the heads are fitted.")],
    out: Annotated[Path, typer.Option(help="Folder to write the encoder to.")],
    settings: Assembly,
    force: Annotated[bool, typer.Option("--force", help="Replace a model that is in the folder.")] = False,
) -> None:
    """Build an encoder from a backbone: marker tokens, query expansion and untrained projection heads, ready for pairs.

    The heads are principal components of the hidden states. The exit status is 2 if the encoder cannot be built.
    """
    with failing_politely(), progress_bar("texts", settings.texts) as bar:
        quiet_libraries()
        from jcv2_trainer.training import assemble as making

        report = making.assemble(backbone, data, out, settings, force=force, progress=bar.update)
    say(
        f"{out}: an encoder over {backbone!r}, {report.parameters:,} parameters. Its heads are not trained; they are "
        f"fitted to {report.queries:,} queries and {report.positives:,} positives."
    )
    _show_shares(report.captured)
    if report.added_tokens:
        say(f"  new tokens: {', '.join(report.added_tokens)}")
    say(f"  Next, train it: jcv2-finetune pairs DATA... --model {out} --out DIR")


def principal_heads(
    data: Annotated[Path, typer.Argument(help="A file of pairs or triplets, whose texts are the sample.")],
    out: HeadsOut,
    model: Backbone = "mini",
    dims: HeadsDims = _DIMS,
    texts: Annotated[int, typer.Option(min=2, help="Size of the sample: half queries, half positives.")] = 3000,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps in which heads learn to rank like the full hidden states. 0 for none.")
    ] = 400,
    pool_factors: HeadsFactors = "1",
    seed: Annotated[int, typer.Option(help="Seed of the sample and of the steps.")] = 13,
    lang: Annotated[str | None, typer.Option(help="Use only rows with this lang.")] = None,
    force: HeadsForce = False,
) -> None:
    """Fit projection heads without labels: principal components of the hidden states, trained to preserve MaxSim.

    The hidden states are computed once and held in memory (230 MB for 3,000 texts of 100 tokens with a small backbone).
    The exit status is 2 if the heads cannot be fitted or written.
    """
    wanted, factors = _parse_dims(dims), _parse_factors(pool_factors)
    with failing_politely(), new_folder(out, partial(_refuse_occupied, force=force)) as folder:
        queries, positives = sample_texts(data, texts, seed, lang)
        quiet_libraries()
        from jcv2_trainer.heads.principal import load_backbone, prompts_of, refuse_large
        from jcv2_trainer.heads.score_keeping import fit_heads

        backbone = load_backbone(model)
        refuse_large(model, backbone, wanted)
        with progress_bar("texts", texts) as read, progress_bar("steps", steps) as done:
            options: dict[str, Any] = {"steps": steps, "pool_factors": factors, "seed": seed}
            options |= {"prompts": prompts_of(model), "texts_done": read.update, "steps_done": done.update}
            fitted = fit_heads(backbone, queries, positives, wanted, **options)
        fitted.heads.save(str(folder))
    say(f"{out}: heads for {model!r}, from {len(queries):,} queries and {len(positives):,} positives.")
    _show_shares(fitted.captured)
    if steps:
        say("What MaxSim's differences between passages lose, as a share of their variance:")
        for dim, error in fitted.errors.items():
            before = fitted.component_errors[dim]
            say(f"  {dim:>5} dimensions lose {error:.2%} (principal components: {before:.2%})")


def heads(
    data: Annotated[list[Path], typer.Argument(help="Files of pairs and triplets.")],
    out: HeadsOut,
    model: Backbone = "mini-multilingual",
    dims: HeadsDims = _DIMS,
    rows: Annotated[int, typer.Option(min=1, help="Maximum rows of each source and language.")] = 600,
    negatives: Annotated[int, typer.Option(min=0, help="Maximum hard negatives of a triplet.")] = 2,
    document_length: Annotated[int, typer.Option(min=3, help="Tokens to which a passage is truncated.")] = 320,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 500,
    batch_size: Annotated[int, typer.Option(min=2, help="Queries per step, all in one language.")] = 48,
    learning_rate: Annotated[float, typer.Option(min=1e-6, max=1.0, help="Learning rate of the heads.")] = 1e-3,
    distillation: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the smaller heads' loss that is distilled from the largest."),
    ] = 0.5,
    keep_largest: Annotated[
        bool,
        typer.Option(
            "--keep-largest", help="Leave the largest head untrained, and train the others to rank as it does."
        ),
    ] = False,
    texts_without_labels: Annotated[
        list[Path] | None,
        typer.Option(
            "--texts",
            help="Texts without labels, on which the smaller heads learn to keep the largest head's scores. "
            "The formats are those of mlm.",
        ),
    ] = None,
    pool_factors: HeadsFactors = "1",
    dev_every: Annotated[int, typer.Option(min=0, help="Hold out one in so many passages. 0 for none.")] = 16,
    seed: Annotated[int, typer.Option(help="Seed of the draw of rows, and of the batches.")] = 13,
    force: HeadsForce = False,
) -> None:
    """Train projection heads on pairs and triplets over a frozen backbone.

    The hidden states are computed once and held in memory (1.5 GB for 10,000 passages of 200 tokens with a small
    backbone), so a CPU trains all heads in minutes. The exit status is 2 if they cannot be trained or written.
    """
    wanted, factors = _parse_dims(dims), _parse_factors(pool_factors)
    with failing_politely(), new_folder(out, partial(_refuse_occupied, force=force)) as folder:
        quiet_libraries()
        from jcv2_trainer.data.mlm import read_texts
        from jcv2_trainer.heads import principal
        from jcv2_trainer.heads.frozen import (
            FrozenTexts,
            dev_ndcg,
            moment_of,
            refuse_few,
            train_heads,
            whitened_heads,
        )
        from jcv2_trainer.heads.principal import half_states, load_backbone, prompts_of, refuse_large

        texts = FrozenTexts.read(
            data, rows=rows, negatives=negatives, dev_every=dev_every, dev_rows=max(1, rows // 10), seed=seed
        )
        backbone, prompts = load_backbone(model), prompts_of(model)
        refuse_large(model, backbone, wanted)
        backbone.max_seq_length = min(document_length, backbone.max_seq_length or document_length)
        more = list(dict.fromkeys(text for file in texts_without_labels or () for text in read_texts(file)))
        refuse_few(more)
        with progress_bar("texts", len(texts.queries) + len(texts.passages) + len(more)) as bar:
            queries = half_states(backbone, texts.queries, prompts["query"], 4096, bar.update)
            passages = half_states(backbone, texts.passages, prompts["document"], 4096, bar.update)
            unlabelled = half_states(backbone, more, prompts["document"], 4096, bar.update)
        moment = moment_of(queries, passages, 1500, seed)
        options: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        with progress_bar("steps", steps) as bar:
            start = whitened_heads(moment, wanted)
            options |= {"steps": steps, "distillation": distillation, "pool_factors": factors, "progress": bar.update}
            options |= {"train_largest": not keep_largest, "unlabelled": unlabelled}
            trained = train_heads(start, texts, queries, passages, **options)
        trained.save(str(folder))
        both = (principal.principal_heads(moment, wanted), trained)
        weights = [{dim: one.weight(dim) for dim in wanted} for one in both]
        figures = {
            factor: [dev_ndcg(one, texts, queries, passages, factor) for one in weights] for factor in {1.0, *factors}
        }
    say(f"{out}: heads for {model!r}, from {len(texts.examples):,} rows.")
    if texts.dev:
        say(f"nDCG@10 of {len(texts.dev):,} rows that were held out, principal components and trained heads:")
    for factor, dim in product(sorted(figures), wanted) if texts.dev else ():
        before, after = (fmean(row[dim] for row in one.values()) for one in figures[factor])
        say(f"  {dim:>5} dimensions{with_pooling(factor)}  {before:.4f} -> {after:.4f}")


def _show_shares(shares: dict[int, float]) -> None:
    for dim, share in shares.items():
        say(f"  {dim:>5} dimensions hold {share:.1%} of the hidden states' squared length")


def _refuse_occupied(out: Path, force: bool) -> None:
    """Raise if ``out`` contains anything, or with ``force`` anything but heads."""
    if out.exists() and not out.is_dir():
        raise Jcv2Error(f"{out} is not a folder. Choose another --out.")
    names = {path.name for path in out.iterdir()} if out.exists() else set()
    if others := names - _HEADS_FILES:
        raise Jcv2Error(f"{out} contains other files than heads ({min(others)}). Choose another --out.")
    if names and not force:
        raise Jcv2Error(f"{out} already contains heads. Choose another --out, or replace them with --force.")
