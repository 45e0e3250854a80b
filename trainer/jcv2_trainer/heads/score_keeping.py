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
from torch.nn import functional as F

from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_trainer.heads.principal import captured, falling_rate, half_states, mean_outer_product, principal_heads
from jcv2_trainer.loss.pooling import pooled

STEPS = 400
QUERIES, PASSAGES = 24, 72
"""Real queries per step, and passages to compare them with. Half as many spans of passages serve as further queries."""
_SPAN = (5, 14)
_LEARNING_RATE = 2e-3
_WHOLE_QUERIES = 0.5
"""Weight of the error of whole scores, relative to that of single tokens, whose errors partly cancel."""


TokenStates = Sequence[Tensor]
"""L2-normalised hidden states of each text, shape ``(tokens, hidden)``. Half precision is enough."""


@dataclass(frozen=True)
class _Step:
    """Queries and passages of one step, with their tokens concatenated."""

    queries: Tensor
    query_lengths: list[int]
    passages: Tensor
    passage_lengths: list[int]

    @cached_property
    def wanted(self) -> Tensor:
        """Target of every head: :meth:`best` of the full hidden states."""
        return self.best(None)[0]

    def best(self, weight: Tensor | None, pool_factors: Sequence[float] = (1,)) -> list[Tensor]:
        """Return each query token's largest cosine with each passage, centred over passages: ``(tokens, passages)``.

        There is one result for each token pooling factor of the passages.
        """
        queries, passages = self.queries, self.passages
        if weight is not None:
            queries, passages = F.normalize(queries @ weight.T, dim=-1), F.normalize(passages @ weight.T, dim=-1)
        found = []
        for vectors, lengths in pooled(passages, self.passage_lengths, pool_factors):
            products = torch.split(queries @ vectors.T, lengths, dim=1)
            best = torch.stack([one.max(dim=1).values for one in products], dim=1)
            found.append(best - best.mean(dim=1, keepdim=True))
        return found

    def sums(self, values: Tensor) -> Tensor:
        """Sum token rows into query rows."""
        return torch.stack([one.sum(dim=0) for one in torch.split(values, self.query_lengths)])


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
    """Train heads to rank as the full hidden states do.

    Args:
        heads: Initial heads, such as :func:`~jcv2_trainer.heads.principal.principal_heads`. A head as large as the
            hidden states is left unchanged, unless passages are pooled: an orthogonal matrix loses nothing.
        queries: Hidden states of the queries.
        passages: Hidden states of the passages that answer them, in the same order. There may be more.
        steps: Optimiser steps.
        pool_factors: Token pooling factors of the passages, over which a head's loss is the mean. The hidden states
            that it should rank like are never pooled.
        seed: Random seed of the batches.
        progress: Called with 1 after each step.

    Returns:
        New heads on the CPU.

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
        schedule = falling_rate(optimizer, steps)
        for batch in _batches(queries, passages, steps, seed):
            loss = sum((_loss(batch, weight, pool_factors) for weight in trained), start=torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(1)
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
    components.

    Args:
        backbone: A transformer that returns ``token_embeddings``.
        queries: Queries.
        passages: The passages that answer them, in the same order. There may be more.
        dims: Dimensions of the heads, the default one first.
        prompts: Prefix of each ``"query"`` and each ``"document"``, as in a model's ``prompts``.
        steps: Steps of :func:`keep_scores`. 0 returns the principal components.
        pool_factors: Token pooling factors to train for; see :func:`keep_scores`.
        seed: Random seed of the batches.
        texts_done: Called after each batch of texts with their number.
        steps_done: Called with 1 after each step.
    """
    prompts = prompts or {}
    texts = [prompts.get("document", "") + text for text in passages]
    texts += [prompts.get("query", "") + text for text in queries]
    found = half_states(backbone, texts, progress=texts_done)
    answers, asked = found[: len(passages)], found[len(passages) :]
    moment = mean_outer_product(states.float() for states in found)
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
            wanted = batch.sums(batch.wanted)
            lost += float((batch.sums(batch.best(weight)[0]) - wanted).square().sum())
            whole += float(wanted.square().sum())
    return lost / whole


def _loss(batch: _Step, weight: Tensor, pool_factors: Sequence[float] = (1,)) -> Tensor:
    total = torch.zeros(())
    for best in batch.best(weight, pool_factors):
        error = best - batch.wanted
        loss = error.square().sum(dim=1).mean() + _WHOLE_QUERIES * batch.sums(error).square().mean()
        total = total + loss / len(pool_factors)
    return total


def _batches(queries: TokenStates, passages: TokenStates, steps: int, seed: int) -> Iterator[_Step]:
    """Yield queries with their own and other passages, and spans of further passages as additional queries."""
    generator = random.Random(seed)
    for _ in range(steps):
        asked = generator.sample(range(len(queries)), min(QUERIES, len(queries)))
        rest = sorted(set(range(len(passages))).difference(asked))
        generator.shuffle(rest)
        count = max(PASSAGES - len(asked), 0)
        read = [*asked, *rest[:count]]
        spans = [_span(passages[index], generator) for index in rest[count : count + QUERIES // 2]]
        chosen = [*(queries[index].float() for index in asked), *spans]
        texts = [passages[index].float() for index in read]
        yield _Step(torch.cat(chosen), [len(one) for one in chosen], torch.cat(texts), [len(one) for one in texts])


def _span(states: Tensor, generator: random.Random) -> Tensor:
    length = generator.randint(*_SPAN)
    start = generator.randint(0, max(0, len(states) - length))
    return states[start : start + length].float()
