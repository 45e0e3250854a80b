"""Train heads on a backbone that is not trained itself: its token states are computed once, so a CPU trains in minutes.

All heads are trained jointly and untied by the contrastive loss of arXiv 2408.16672, section 3: each query's positive
against all passages of its batch, of which triplets bring hard negatives. The smaller heads also learn the distribution
over the batch that the largest gives, the best teacher at hand where there is no cross-encoder. A batch is in one
language, so that language tells no passage from another; cross-lingual queries are among it, by the language of their
passages.

Heads start from principal components. In many encoders most of the states' length lies in one direction, which says
little of a token: it is shortened, and the next ones are mildly whitened.

Heads that learn from labels of few sources get better at these sources and worse at others. So the largest head may
stay as it starts, and teach the others its scores, on texts without labels too
(:mod:`jcv2_trainer.heads.score_keeping`).
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.evaluation.metrics import measure_run, run_of
from jcv2_trainer.data.lines import DataError
from jcv2_trainer.data.reading import read_rows
from jcv2_trainer.heads.principal import (
    TokenStates,
    largest_cosines,
    mean_outer_product,
    optimise,
    pack,
    principal_heads,
    sums,
)
from jcv2_trainer.heads.score_keeping import ScoreBatch, score_keeping_loss, span_of
from jcv2_trainer.loss.losses import contrastive_loss, distillation_loss

MAIN_DIRECTION, WHITENING = 0.2, 0.1
_SCALE = 3.0
_SCALE_RATE = 1e-2
_TEACHER_SCALE = 4.0
"""Factor on the scores of the largest head if it is not trained."""
_KEPT_QUERIES, _KEPT_TEXTS, _KEPT_SPANS = 16, 40, 16
"""Numbers of a step that keeps scores. Each query comes with its positive and that of another query. Spans of
unlabelled texts are further queries; half of these texts are not among the passages."""
_TRIPLETS = 2 / 3
"""Of a batch, where there are both: pairs are many, and only triplets bring hard negatives."""
_DEV_PASSAGES = 400
"""A language's dev passages, at most."""


@dataclass(frozen=True)
class Example:
    """A row whose texts are given by their places in :class:`FrozenTexts`."""

    query: int
    positive: int
    negatives: tuple[int, ...]
    source: str
    lang: str

    @property
    def language(self) -> str:
        """That of the passages: ``ar-de`` is an Arabic question and a German passage."""
        return self.lang.rpartition("-")[2]


@dataclass
class FrozenTexts:
    """Distinct texts of training files, and the rows that they stand in.

    No positive of ``dev``, the rows set aside, is a positive of ``examples``, and no query of ``dev`` is one of them.
    ``known`` holds the passages that answer a query, by its place.
    """

    queries: list[str] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    dev: list[Example] = field(default_factory=list)
    known: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def read(
        cls, files: Iterable[Path], *, rows: int, negatives: int, dev_every: int, dev_rows: int, seed: int
    ) -> FrozenTexts:
        """Draw rows from files of pairs or triplets.

        Args:
            files: Of any format that ``jcv2-finetune`` reads.
            rows: Of each source and language, at most; triplets first. Pairs whose passage is among the drawn ones cost
                no more than their query, and come on top.
            negatives: Of each row kept for training, at most.
            dev_every: One in so many positives is set aside with its rows.
            dev_rows: Of each source and language, at most.
            seed: Of the draw.

        Raises:
            DataError: A file cannot be read, or there is no row to train on.
        """
        generator = random.Random(seed)
        drawn = [row for file in files for row in read_rows(file)]
        generator.shuffle(drawn)
        texts, places = cls(), (dict[str, int](), dict[str, int]())
        counts: Counter[tuple[str, str, bool]] = Counter()

        def place(of: int, text: str) -> int:
            return places[of].setdefault(text, len(places[of]))

        for row in sorted(drawn, key=lambda row: not row.negatives):
            aside = _aside(row.positive, dev_every)
            kind = (row.source, row.lang, aside)
            costs = row.negatives or row.positive not in places[1]
            if (aside and not row.negatives) or (costs and counts[kind] >= (dev_rows if aside else rows)):
                continue
            counts[kind] += 1
            kept = row.negatives if aside else generator.sample(row.negatives, min(negatives, len(row.negatives)))
            query, positive = place(0, row.query), place(1, row.positive)
            example = Example(query, positive, tuple(place(1, text) for text in kept), row.source, row.lang)
            (texts.dev if aside else texts.examples).append(example)
        texts.queries, texts.passages = list(places[0]), list(places[1])
        for row in drawn:
            if row.query in places[0] and row.positive in places[1]:
                texts.known[places[0][row.query]].add(places[1][row.positive])
        asked = {one.query for one in texts.dev}
        texts.examples = [one for one in texts.examples if one.query not in asked]
        if not texts.examples:
            raise DataError("There is no row to train on. Give a file of pairs or triplets.")
        return texts


def _aside(text: str, every: int) -> bool:
    return every > 0 and random.Random(text).randrange(every) == 0


def whitened_heads(
    moment: Tensor, dims: Sequence[int], main_direction: float = MAIN_DIRECTION, whitening: float = WHITENING
) -> MatryoshkaHeads:
    """Return scaled principal components, where training starts.

    The states' length along the first is multiplied by ``main_direction``. Each other one is divided by its share of
    the length to the power ``whitening``, relative to the second's; 1/2 would make all equal, noise included.
    """
    components = principal_heads(moment, dims)
    largest = components.weight(max(dims)).double()
    shares = ((largest @ moment.double()) * largest).sum(dim=1)
    lengths = (shares / shares[min(1, len(shares) - 1)]).clamp(min=1e-6) ** -whitening
    lengths[0] = main_direction
    scaled = (largest * lengths[:, None]).float()
    return MatryoshkaHeads(components.in_features, dims, weights={dim: scaled[:dim] for dim in dims})


def maxsim_scores(
    weight: Tensor, queries: Tensor, query_lengths: Sequence[int], passages: Tensor, passage_lengths: list[int]
) -> Tensor:
    """Return MaxSim, ``(queries, passages)``, under a head ``(dim, hidden)`` of packed states ``(tokens, hidden)``."""
    return pooled_scores(weight, queries, query_lengths, passages, passage_lengths, (1,))[0]


def pooled_scores(
    weight: Tensor,
    queries: Tensor,
    query_lengths: Sequence[int],
    passages: Tensor,
    passage_lengths: list[int],
    factors: Sequence[float],
) -> list[Tensor]:
    """Return :func:`maxsim_scores` with the passages' vectors pooled by each factor."""
    return [sums(best, query_lengths) for best in largest_cosines(weight, queries, passages, passage_lengths, factors)]


def train_heads(
    heads: MatryoshkaHeads,
    texts: FrozenTexts,
    queries: TokenStates,
    passages: TokenStates,
    *,
    steps: int,
    batch_size: int = 48,
    learning_rate: float = 1e-3,
    distillation: float = 0.5,
    train_largest: bool = True,
    unlabelled: TokenStates = (),
    pool_factors: Sequence[float] = (1,),
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> MatryoshkaHeads:
    """Return new heads on the CPU, trained from ``heads`` such as :func:`whitened_heads`; see the module.

    Args:
        heads: Where training starts.
        texts: Rows to train on.
        queries: States of the questions of ``texts``.
        passages: States of its passages.
        steps: Optimiser steps.
        batch_size: Queries of a step.
        learning_rate: Of the heads.
        distillation: Share of the smaller heads' loss that is their KL divergence from the largest head's scores of the
            batch's passages; the rest is contrastive.
        train_largest: Whether to train the largest head too. If not, it stays as it is and teaches the others.
        unlabelled: States of further texts, in any language, on which the smaller heads learn to keep the largest
            head's scores, see :mod:`jcv2_trainer.heads.score_keeping`.
        pool_factors: Token pooling factors of the passages. A head's loss is the mean over them. All but the largest
            head's scores with the smallest factor are distilled from these.
        seed: Of the batches.
        progress: Gets 1 after each step.

    Raises:
        DataError: ``unlabelled`` has texts, but fewer than a step takes.
    """
    refuse_few(unlabelled)
    top = max(heads.dims)
    weights = {
        dim: nn.Parameter(heads.weight(dim).float().cpu().clone(), requires_grad=train_largest or dim != top)
        for dim in heads.dims
    }
    scales = {dim: nn.Parameter(torch.tensor(_SCALE).log()) for dim in heads.dims}
    groups = [(weights, learning_rate), (scales, _SCALE_RATE)]
    optimizer = torch.optim.Adam(
        [{"params": list(one.values()), "lr": rate} for one, rate in groups], betas=(0.9, 0.98)
    )
    factors = sorted(pool_factors)
    keeping = _kept(texts, queries, passages, unlabelled, seed, weights[top])

    def losses(batch: list[Example]) -> Iterator[Tensor]:
        kept = next(keeping) if unlabelled else None
        read = list(dict.fromkeys(place for one in batch for place in (one.positive, *one.negatives)))
        column = {place: number for number, place in enumerate(read)}
        positive = torch.tensor([column[one.positive] for one in batch])
        excluded = torch.tensor(
            [[place in texts.known[one.query] and place != one.positive for place in read] for one in batch]
        )
        packed = (*pack(queries[one.query] for one in batch), *pack(passages[place] for place in read))
        teacher: Tensor | None = None
        for dim in sorted(heads.dims, reverse=True):  # one at a time: the heads share nothing
            if dim == top and not train_largest:
                with torch.no_grad():
                    teacher = maxsim_scores(weights[dim], *packed) * _TEACHER_SCALE
                continue
            total = torch.zeros(()) if kept is None or dim == top else score_keeping_loss(kept, weights[dim], factors)
            for own in pooled_scores(weights[dim], *packed, factors):
                scores = own * scales[dim].exp()
                loss = contrastive_loss(scores, positive, excluded)
                if teacher is None:
                    teacher = scores.detach()
                else:
                    allowed = scores.masked_fill(excluded, float("-inf"))
                    loss = (1 - distillation) * loss + distillation * distillation_loss(allowed, teacher)
                total = total + loss / len(factors)
            yield total

    optimise(optimizer, _batches(texts, steps, batch_size, seed), losses, steps, progress)
    trained = {dim: weight.detach() for dim, weight in weights.items()}
    return MatryoshkaHeads(heads.in_features, heads.dims, heads.normalize, weights=trained)


def refuse_few(unlabelled: Sequence[object]) -> None:
    """Raise ``DataError`` if there are texts without labels, but fewer than a step takes."""
    if 0 < len(unlabelled) < _KEPT_TEXTS:
        raise DataError(f"Give at least {_KEPT_TEXTS} texts without labels, or none; got {len(unlabelled)}.")


def _kept(
    texts: FrozenTexts, queries: TokenStates, passages: TokenStates, unlabelled: TokenStates, seed: int, target: Tensor
) -> Iterator[ScoreBatch]:
    """Queries and passages of all languages together with unlabelled texts, for the scores of a head to be kept."""
    generator = random.Random(seed + 1)
    while True:
        rows = generator.sample(texts.examples, min(2 * _KEPT_QUERIES, len(texts.examples)))
        asked, read = rows[:_KEPT_QUERIES], list(dict.fromkeys(one.positive for one in rows))
        more = generator.sample(range(len(unlabelled)), _KEPT_TEXTS)
        spans = [span_of(unlabelled[place], generator) for place in more[:_KEPT_SPANS]]
        packed = (
            *pack([*(queries[one.query] for one in asked), *spans]),
            *pack([*(passages[place] for place in read), *(unlabelled[place] for place in more[_KEPT_SPANS // 2 :])]),
        )
        yield ScoreBatch(*packed, target.detach())


def _batches(texts: FrozenTexts, steps: int, size: int, seed: int) -> Iterator[list[Example]]:
    """Rows of one language a batch, a language as often as the root of its number of rows says."""
    generator = random.Random(seed)
    pools: dict[str, tuple[list[Example], list[Example]]] = defaultdict(lambda: ([], []))
    for example in texts.examples:
        pools[example.language][not example.negatives].append(example)
    names = sorted(pools)
    shares = [sum(map(len, pools[name])) ** 0.5 for name in names]
    for _ in range(steps):
        triplets, pairs = pools[generator.choices(names, shares)[0]]
        count = min(len(triplets), round(size * _TRIPLETS) if pairs else size)
        drawn = generator.sample(triplets, count) + generator.sample(pairs, min(len(pairs), size - count))
        yield list({one.query: one for one in drawn}.values())


def dev_ndcg(
    weights: Mapping[int, Tensor],
    texts: FrozenTexts,
    queries: TokenStates,
    passages: TokenStates,
    pool_factor: float = 1,
) -> dict[str, dict[int, float]]:
    """nDCG@10 of the rows set aside, by source and language, then by dimension: each among its own passages."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in texts.dev:
        groups[f"{example.source}, {example.lang}"].append(example)
    figures: dict[str, dict[int, float]] = {}
    for name, rows in sorted(groups.items()):
        read = list(dict.fromkeys(place for one in rows for place in (one.positive, *one.negatives)))[:_DEV_PASSAGES]
        held = set(read)
        asked = list(dict.fromkeys(one.query for one in rows if one.positive in held))
        qrels = {str(one): {str(place): 1 for place in texts.known[one] & held} for one in asked}
        packed = (*pack(queries[place] for place in asked), *pack(passages[place] for place in read))
        with torch.no_grad():
            scores = {dim: pooled_scores(weight, *packed, [pool_factor])[0] for dim, weight in weights.items()}
        figures[name] = {
            dim: measure_run(run_of(own, list(map(str, asked)), list(map(str, read))), qrels).ndcg_at_10
            for dim, own in scores.items()
        }
    return figures


def moment_of(queries: TokenStates, passages: TokenStates, count: int, seed: int) -> Tensor:
    """Second moment of the states of so many queries and as many passages."""
    generator = random.Random(seed)
    drawn = [part for states in (queries, passages) for part in generator.sample(states, min(count, len(states)))]
    return mean_outer_product(part.float() for part in drawn)
