"""Fit projection heads without training: principal components of a backbone's hidden states.

Projecting on the leading eigenvectors of the (uncentred) second moment of the normalised hidden states loses the least
of their dot products, which are what MaxSim compares. For a backbone without late-interaction heads, this is the
starting point of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from torch.nn import functional as F

from jcv2_plugin.encoder.backbone import text_transformer
from jcv2_plugin.encoder.batching import occupied_columns, plan_batches, take_rows
from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.hub import refuse_pickles
from jcv2_plugin.encoder.shipped import shipped_model, shipped_names
from jcv2_plugin.errors import InvalidOptionError, ModelLayoutError, ModelNotFoundError
from jcv2_trainer.loss.pooling import pooled

TokenStates = Sequence[Tensor]
"""L2-normalised hidden states of each text, shape ``(tokens, hidden)``, in half precision."""

Progress = Callable[[int], object]


def load_backbone(name_or_folder: str) -> Transformer:
    """Load the backbone of a shipped model (``"mini"``), or the transformers model in a folder.

    No remote code is run and no pickle is read.

    Raises:
        ModelNotFoundError: It is neither the name of a shipped model nor a folder.
        ModelLayoutError: transformers cannot read the folder.
    """
    if (shipped := shipped_model(name_or_folder)) is not None:
        return shipped.backbone({})
    folder = Path(name_or_folder).expanduser()
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"{name_or_folder!r} is neither a folder nor a shipped model ({', '.join(shipped_names())}). "
            "Give the folder of a transformers model (config.json, model.safetensors, tokenizer)."
        )
    refuse_pickles(folder)
    try:
        return text_transformer(folder, {})
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelLayoutError(
            f"{name_or_folder!r} cannot be read as a transformers model: {error} "
            "It needs config.json, model.safetensors and a tokenizer."
        ) from error


def refuse_large(model: str, backbone: Transformer, dims: Sequence[int]) -> None:
    """Raise ``InvalidOptionError`` if a head would be larger than the hidden states of a backbone."""
    if max(dims) > (hidden := int(backbone.get_embedding_dimension())):
        raise InvalidOptionError(
            f"The backbone {model!r} has hidden states of {hidden} components, so no head of {max(dims)} can be "
            f"fitted. Give --dims of at most {hidden}."
        )


def prompts_of(name_or_folder: str) -> dict[str, str]:
    """Return the prompts of a shipped model for ``"query"`` and ``"document"``; those of a folder are empty."""
    shipped = shipped_model(name_or_folder)
    return {"query": "", "document": "", **({} if shipped is None else shipped.settings["prompts"])}


def second_moment(
    backbone: Transformer, texts: Sequence[str], tokens_per_batch: int = 512, progress: Progress | None = None
) -> Tensor:
    """Return the mean outer product of the hidden states of texts: float64, ``(hidden, hidden)``, with trace 1.

    Raises:
        ValueError: There are no texts.
    """
    if not texts:
        raise ValueError("There are no texts, so there is no second moment. Give at least one.")
    return mean_outer_product(states for _, states in _token_states(backbone, texts, tokens_per_batch, progress))


def mean_outer_product(states: Iterable[Tensor]) -> Tensor:
    """Return the mean outer product of the rows of all matrices ``(tokens, hidden)``, in float64."""
    total, tokens = torch.zeros(()), 0
    for one in states:
        rows = one.double()
        total = total + rows.T @ rows
        tokens += len(rows)
    return total / tokens


def _token_states(
    backbone: Transformer, texts: Sequence[str], tokens_per_batch: int, progress: Progress | None
) -> Iterator[tuple[int, Tensor]]:
    """Yield the position and the normalised hidden states ``(tokens, hidden)`` of each text, in no particular order.

    Texts are truncated to the backbone's maximum length. Padding is left out, special tokens are not.
    """
    backbone.eval()
    device = next(backbone.parameters()).device
    for start in range(0, len(texts), 256):
        features = backbone.preprocess(texts[start : start + 256], task="document")
        first, last = occupied_columns(features)
        for rows in plan_batches((last - first).tolist(), tokens_per_batch):
            with torch.inference_mode():
                batch = take_rows(features, rows, int(first[rows].min()), int(last[rows].max()))
                output = backbone(batch_to_device(batch, device))
                states = F.normalize(output["token_embeddings"].float().cpu(), dim=-1)
                mask = output["attention_mask"].bool().cpu()
            for index, row in enumerate(rows):
                yield start + row, states[index][mask[index]]
            if progress is not None:
                progress(len(rows))


def half_states(
    backbone: Transformer,
    texts: Sequence[str],
    prompt: str = "",
    tokens_per_batch: int = 512,
    progress: Progress | None = None,
) -> list[Tensor]:
    """Return the :data:`TokenStates` of texts, each behind ``prompt``. ``progress`` gets the number of texts done."""
    found = [torch.empty(0)] * len(texts)
    for index, states in _token_states(backbone, [prompt + text for text in texts], tokens_per_batch, progress):
        found[index] = states.half()
    return found


def pack(states: Iterable[Tensor]) -> tuple[Tensor, list[int]]:
    """Return the states of some texts one after another, in float32, and how many each has."""
    parts = list(states)
    return torch.cat(parts).float(), [len(one) for one in parts]


class _Largest(torch.autograd.Function):
    """Each query token's largest dot product with each passage, ``(tokens, passages)``.

    Only the passage token that was largest gets a gradient, so the backward pass is sparse, where that of a product and
    a maximum is two dense products.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, passages: Tensor, lengths: list[int]) -> Tensor:
        values, places, start = [], [], 0
        for products in torch.split(queries @ passages.T, lengths, dim=1):
            best = products.max(dim=1)
            values.append(best.values)
            places.append(best.indices + start)
            start += products.shape[1]
        ctx.save_for_backward(queries, passages, torch.stack(places, dim=1))
        return torch.stack(values, dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        queries, passages, places = ctx.saved_tensors
        (upstream,) = gradients
        to_queries = torch.stack([weights @ passages[own] for weights, own in zip(upstream, places, strict=True)])
        weighted = upstream[:, :, None] * queries[:, None, :]
        to_passages = torch.zeros_like(passages).index_add_(0, places.flatten(), weighted.flatten(0, 1))
        return to_queries, to_passages, None


def largest_cosines(
    weight: Tensor | None, queries: Tensor, passages: Tensor, lengths: list[int], factors: Sequence[float] = (1,)
) -> list[Tensor]:
    """Return each query token's largest cosine with each passage, ``(tokens, passages)``, of packed states.

    The states are projected by a head's weight ``(dim, hidden)`` first, if there is one. There is one result for each
    token pooling factor of the passages.
    """
    if weight is not None:
        queries, passages = F.normalize(queries @ weight.T, dim=-1), F.normalize(passages @ weight.T, dim=-1)
    return [_Largest.apply(queries, *own) for own in pooled(passages, lengths, factors)]  # type: ignore[no-untyped-call]


def sums(values: Tensor, lengths: Sequence[int]) -> Tensor:
    """Add up the rows of each query's tokens: ``(tokens, passages)`` to ``(queries, passages)``."""
    return torch.stack([one.sum(dim=0) for one in torch.split(values, list(lengths))])


def optimise(
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    losses: Callable[[Any], Iterable[Tensor]],
    steps: int,
    progress: Progress | None,
) -> None:
    """Take a step for each batch. The learning rate rises for 20 steps and then falls linearly to 2 %."""
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 20) * max(0.02, 1 - step / max(steps, 1))
    )
    for batch in batches:
        optimizer.zero_grad()
        for loss in losses(batch):
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(1)


def captured(moment: Tensor, weight: Tensor) -> float:
    """Return the share of a second moment (of any trace) within the span of the orthonormal rows of ``weight``."""
    rows = weight.detach().to(moment)
    return float(((rows @ moment) * rows).sum() / moment.trace())


def principal_heads(moment: Tensor, dims: Iterable[int]) -> MatryoshkaHeads:
    """Return heads on the leading eigenvectors of a second moment. The first of ``dims`` is the default.

    Raises:
        ValueError: A dimension exceeds the hidden size.
    """
    wanted = tuple(dims)
    hidden = moment.shape[0]
    if max(wanted) > hidden:
        raise ValueError(f"The backbone's states have {hidden} components, so no head of {max(wanted)} can be fitted.")
    components = torch.linalg.eigh(moment).eigenvectors.flip(1).T  # rows, largest eigenvalue first
    # The sign of an eigenvector is arbitrary; fix it, so that a refit gives the same file.
    signs = torch.sign(components.gather(1, components.abs().argmax(dim=1, keepdim=True)))
    components = (components * signs).float()
    return MatryoshkaHeads(hidden, wanted, weights={dim: components[:dim] for dim in wanted})
