"""Fit heads without labels so that MaxSim says what it says at full size.

Principal components keep the dot products of token states best on average. A ranking asks for less and for more: only
the *largest* dot product of each query token counts, and only the differences of passages. So each head is trained, on
states that are computed once, to give the differences of MaxSim that whole states give. It is the idea of
Matryoshka-Adaptor (arXiv 2407.20243: keep the similarities of texts when dimensions are cut), for token vectors.
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
from jcv2_trainer.heads.principal import captured, mean_outer_product, principal_heads, token_states

STEPS = 400
QUERIES, PASSAGES = 24, 72
"""Real queries of a step, and passages that they are compared with; half as many queries are spans of passages."""
_SPAN = (5, 14)
_WARMUP = 20
_LEARNING_RATE = 2e-3
_WHOLE_QUERIES = 0.5
"""Weight of the error of whole scores beside that of single tokens, whose errors partly cancel."""


TokenStates = Sequence[Tensor]
"""Of each text its L2-normalised token states, of shape ``(tokens, hidden)``; half precision will do."""


@dataclass(frozen=True)
class _Step:
    """Queries and passages of one step, tokens one behind the other."""

    queries: Tensor
    query_lengths: list[int]
    passages: Tensor
    passage_lengths: list[int]

    @cached_property
    def wanted(self) -> Tensor:
        """:meth:`best` of whole states, which every head is to give."""
        return self.best(None)

    def best(self, weight: Tensor | None) -> Tensor:
        """Each query token's largest cosine with each passage, less its mean over passages: ``(tokens, passages)``."""
        queries, passages = self.queries, self.passages
        if weight is not None:
            queries, passages = F.normalize(queries @ weight.T, dim=-1), F.normalize(passages @ weight.T, dim=-1)
        products = torch.split(queries @ passages.T, self.passage_lengths, dim=1)
        best = torch.stack([one.max(dim=1).values for one in products], dim=1)
        return best - best.mean(dim=1, keepdim=True)

    def sums(self, values: Tensor) -> Tensor:
        """Token rows added up to query rows."""
        return torch.stack([one.sum(dim=0) for one in torch.split(values, self.query_lengths)])


def keep_scores(
    heads: MatryoshkaHeads,
    queries: TokenStates,
    passages: TokenStates,
    *,
    steps: int = STEPS,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> MatryoshkaHeads:
    """Heads trained from ``heads`` to rank as whole states do.

    Args:
        heads: The start, such as :func:`~jcv2_trainer.heads.principal.principal_heads`. One as large as the states is
            kept: an orthogonal matrix loses nothing.
        queries: States of queries.
        passages: States of the passages that answer them, in the same order; there may be more.
        steps: Optimiser steps.
        seed: Of the batches.
        progress: Called after each step with 1.

    Returns:
        New heads on the CPU.

    Raises:
        ValueError: There are no queries, or fewer passages than two or than queries.
    """
    if not len(queries) or len(passages) < max(2, len(queries)):
        raise ValueError(
            f"Keeping scores needs queries and at least as many passages, two or more; got {len(queries)} and "
            f"{len(passages)}. Give more texts."
        )
    weights = {dim: nn.Parameter(heads.weight(dim).float().cpu().clone()) for dim in heads.dims}
    trained = [weight for dim, weight in weights.items() if dim < heads.in_features]
    if trained:
        optimizer = torch.optim.Adam(trained, lr=_LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / _WARMUP) * max(0.02, 1 - step / max(steps, 1))
        )
        for batch in _batches(queries, passages, steps, seed):
            loss = sum((_loss(batch, weight) for weight in trained), start=torch.zeros(()))
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
    """Heads fitted to a backbone's states of some texts.

    Attributes:
        heads: The heads.
        captured: By dimension, the share of the states' squared length within the principal components it began with.
        errors: By dimension, :func:`score_error` of the heads, on other batches than they were trained on.
        components: The principal components.
        component_errors: Their errors.
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
    seed: int = 0,
    texts_done: Callable[[int], object] | None = None,
    steps_done: Callable[[int], object] | None = None,
) -> FittedHeads:
    """Principal components of a backbone's token states, trained by :func:`keep_scores`.

    All states are held in memory: two bytes a component, 230 MB for 3,000 texts of 100 tokens of 384 components.

    Args:
        backbone: A transformer that gives ``token_embeddings``.
        queries: Queries.
        passages: The passages that answer them, in the same order; there may be more.
        dims: Sizes of the heads, the default one first.
        prompts: What stands before each ``"query"`` and each ``"document"``, as a model's ``prompts`` say.
        steps: Of :func:`keep_scores`; 0 leaves the principal components.
        seed: Of the batches.
        texts_done: Called with a number of texts, after each batch of them.
        steps_done: Called with 1 after each step.
    """
    prompts = prompts or {}
    texts = [prompts.get("document", "") + text for text in passages]
    texts += [prompts.get("query", "") + text for text in queries]
    found: list[Tensor] = [torch.empty(0)] * len(texts)
    for index, states in token_states(backbone, texts, progress=texts_done):
        found[index] = states.half()
    answers, asked = found[: len(passages)], found[len(passages) :]
    moment = mean_outer_product(states.float() for states in found)
    components = principal_heads(moment, dims)
    shares = {dim: captured(moment, components.weight(dim)) for dim in components.dims}

    def errors(heads: MatryoshkaHeads) -> dict[int, float]:
        return {dim: score_error(heads.weight(dim), asked, answers, seed=seed + 1) for dim in heads.dims}

    before = errors(components)
    if not steps:
        return FittedHeads(components, shares, before, components, before)
    heads = keep_scores(components, asked, answers, steps=steps, seed=seed, progress=steps_done)
    return FittedHeads(heads, shares, errors(heads), components, before)


def score_error(weight: Tensor, queries: TokenStates, passages: TokenStates, seed: int = 0, steps: int = 8) -> float:
    """What a head loses: the squared error of MaxSim's differences as a share of their variance, on some batches."""
    lost, whole = 0.0, 0.0
    with torch.no_grad():
        for batch in _batches(queries, passages, steps, seed):
            wanted = batch.sums(batch.wanted)
            lost += float((batch.sums(batch.best(weight)) - wanted).square().sum())
            whole += float(wanted.square().sum())
    return lost / whole


def _loss(batch: _Step, weight: Tensor) -> Tensor:
    error = batch.best(weight) - batch.wanted
    return error.square().sum(dim=1).mean() + _WHOLE_QUERIES * batch.sums(error).square().mean()


def _batches(queries: TokenStates, passages: TokenStates, steps: int, seed: int) -> Iterator[_Step]:
    """Queries with the passages of their own and others, and spans of yet others as queries of more kinds."""
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
