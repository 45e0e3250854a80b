"""Fit projection heads without labels, so that they preserve the MaxSim scores of the full hidden states.

Principal components preserve the dot products of hidden states best on average. Ranking needs something else: only the
*largest* dot product of each query token counts, and only differences between passages. Each head is therefore trained,
on hidden states that are computed once, to reproduce the MaxSim differences of the full hidden states. This is the idea
of Matryoshka-Adaptor (arXiv 2407.20243: preserve text similarities at fewer dimensions), applied to token vectors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from sentence_transformers.base.modules import Transformer
from torch import Tensor, nn

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_trainer.heads.principal import (
    TokenStates,
    captured,
    half_states,
    largest_cosines,
    mean_outer_product,
    optimise,
    pack,
    principal_heads,
    sums,
)

STEPS = 400
QUERIES, PASSAGES = 24, 72
"""Real queries per step, and passages to compare them with. Half as many spans of passages serve as further queries."""
_SPAN = (5, 14)
_LEARNING_RATE = 2e-3
_WHOLE_QUERIES = 0.5
"""Weight of the error of whole scores, relative to that of single tokens, whose errors partly cancel."""


@dataclass(frozen=True)
class ScoreBatch:
    """Queries and passages of one step, with their tokens concatenated.

    ``target`` is the weight of the head whose scores are to be kept, None for the full hidden states.
    """

    queries: Tensor
    query_lengths: list[int]
    passages: Tensor
    passage_lengths: list[int]
    target: Tensor | None = None

    @cached_property
    def wanted(self) -> Tensor:
        """What every head should give: :meth:`best` of the target, by default of the full hidden states."""
        return self.best(self.target)[0]

    def best(self, weight: Tensor | None, factors: Sequence[float] = (1,)) -> list[Tensor]:
        """Return each query token's largest cosine with each passage, centred over passages: ``(tokens, passages)``.

        There is one result for each token pooling factor of the passages.
        """
        found = largest_cosines(weight, self.queries, self.passages, self.passage_lengths, factors)
        return [best - best.mean(dim=1, keepdim=True) for best in found]


def keep_scores(
    heads: MatryoshkaHeads,
    queries: TokenStates,
    passages: TokenStates,
    *,
    steps: int = STEPS,
    pool_factors: Sequence[float] = (1,),
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> MatryoshkaHeads:
    """Return new heads on the CPU, trained to rank as the full hidden states do.

    Heads as large as the hidden states are left unchanged, unless passages are pooled: an orthogonal matrix loses
    nothing. The first passages answer the queries, in the same order. A head's loss is the mean over the token pooling
    factors of the passages. The hidden states that it should rank like are never pooled.

    Raises:
        ValueError: There are no queries, fewer passages than queries, or fewer than two passages.
    """
    if not len(queries) or len(passages) < max(2, len(queries)):
        got = f"{len(queries)} and {len(passages)}"
        raise ValueError(f"Give at least one query, and as many passages, two or more; got {got}.")
    weights = {dim: nn.Parameter(heads.weight(dim).float().cpu().clone()) for dim in heads.dims}
    trained = [weight for dim, weight in weights.items() if dim < heads.in_features or max(pool_factors) > 1]
    if trained:
        optimizer = torch.optim.Adam(trained, lr=_LEARNING_RATE)

        def losses(batch: ScoreBatch) -> Iterator[Tensor]:
            return (score_keeping_loss(batch, weight, pool_factors) for weight in trained)

        optimise(optimizer, _batches(queries, passages, steps, seed), losses, steps, progress)
    kept = {dim: weight.detach() for dim, weight in weights.items()}
    return MatryoshkaHeads(heads.in_features, heads.dims, heads.normalize, weights=kept)


@dataclass(frozen=True)
class FittedHeads:
    """Heads fitted to a backbone's hidden states, the principal components they started from, and figures by dimension.

    ``captured`` is the share of the hidden states' squared length within the components. ``errors`` are
    :func:`score_error` on batches that were not used in training.
    """

    heads: MatryoshkaHeads
    captured: dict[int, float]
    errors: dict[int, float]
    components: MatryoshkaHeads
    component_errors: dict[int, float]


def fit_heads(
    backbone: Transformer,
    queries: Sequence[str],
    passages: Sequence[str],
    dims: Sequence[int],
    *,
    prompts: Mapping[str, str] | None = None,
    steps: int = STEPS,
    pool_factors: Sequence[float] = (1,),
    seed: int = 0,
    texts_done: Callable[[int], object] | None = None,
    steps_done: Callable[[int], object] | None = None,
) -> FittedHeads:
    """Fit heads to a backbone: principal components of its hidden states, trained by :func:`keep_scores`.

    All hidden states are held in memory, at two bytes per component: 230 MB for 3,000 texts of 100 tokens with 384
    components. The first passages answer the queries, in the same order. The first of ``dims`` is the default.
    ``prompts`` are a model's, for ``"query"`` and ``"document"``. 0 ``steps`` return the principal components.
    ``pool_factors`` are the token pooling factors to train for; see :func:`keep_scores`.
    """
    prompts = prompts or {}
    asked = half_states(backbone, queries, prompts.get("query", ""), progress=texts_done)
    answers = half_states(backbone, passages, prompts.get("document", ""), progress=texts_done)
    moment = mean_outer_product(states.float() for states in (*answers, *asked))
    components = principal_heads(moment, dims)
    shares = {dim: captured(moment, components.weight(dim)) for dim in components.dims}

    def errors(heads: MatryoshkaHeads) -> dict[int, float]:
        return {dim: score_error(heads.weight(dim), asked, answers, seed=seed + 1) for dim in heads.dims}

    before = errors(components)
    if not steps:
        return FittedHeads(components, shares, before, components, before)
    heads = keep_scores(
        components, asked, answers, steps=steps, pool_factors=pool_factors, seed=seed, progress=steps_done
    )
    return FittedHeads(heads, shares, errors(heads), components, before)


def score_error(weight: Tensor, queries: TokenStates, passages: TokenStates, seed: int = 0, steps: int = 8) -> float:
    """Return the squared error of a head's MaxSim differences as a share of their variance, on some batches."""
    lost, whole = 0.0, 0.0
    with torch.no_grad():
        for batch in _batches(queries, passages, steps, seed):
            wanted = sums(batch.wanted, batch.query_lengths)
            lost += float((sums(batch.best(weight)[0], batch.query_lengths) - wanted).square().sum())
            whole += float(wanted.square().sum())
    return lost / whole


def score_keeping_loss(batch: ScoreBatch, weight: Tensor, factors: Sequence[float] = (1,)) -> Tensor:
    """Return a head's squared error in the MaxSim differences of single query tokens and of whole queries."""
    total = torch.zeros(())
    for best in batch.best(weight, factors):
        error = best - batch.wanted
        whole = sums(error, batch.query_lengths).square().mean()
        total = total + (error.square().sum(dim=1).mean() + _WHOLE_QUERIES * whole) / len(factors)
    return total


def _batches(queries: TokenStates, passages: TokenStates, steps: int, seed: int) -> Iterator[ScoreBatch]:
    """Yield queries with their own and other passages, and spans of further passages as additional queries."""
    generator = random.Random(seed)
    for _ in range(steps):
        asked = generator.sample(range(len(queries)), min(QUERIES, len(queries)))
        rest = sorted(set(range(len(passages))).difference(asked))
        generator.shuffle(rest)
        count = max(PASSAGES - len(asked), 0)
        read = [*asked, *rest[:count]]
        spans = [span_of(passages[index], generator) for index in rest[count : count + QUERIES // 2]]
        yield ScoreBatch(
            *pack([*(queries[index] for index in asked), *spans]), *pack(passages[index] for index in read)
        )


def span_of(states: Tensor, generator: random.Random) -> Tensor:
    """Return a few consecutive tokens of a passage, which serve as a query."""
    length = generator.randint(*_SPAN)
    start = generator.randint(0, max(0, len(states) - length))
    return states[start : start + length]
