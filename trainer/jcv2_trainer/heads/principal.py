"""Fit projection heads without training: principal components of a backbone's hidden states.

Projecting on the leading eigenvectors of the (uncentred) second moment of the normalised hidden states loses the least
of their dot products, which are what MaxSim compares. For a backbone without late-interaction heads, this is the
starting point of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import batch_to_device
from torch.nn import functional as F

from jcv2_plugin.encoder.backbone import text_transformer
from jcv2_plugin.encoder.batching import occupied_columns, plan_batches, take_rows
from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.hub import refuse_pickles
from jcv2_plugin.encoder.shipped import shipped_model, shipped_names
from jcv2_plugin.errors import InvalidOptionError, ModelLayoutError, ModelNotFoundError


def load_backbone(name_or_folder: str) -> Transformer:
    """Load the backbone of a shipped model (``"mini"``), or the transformers model in a folder.

    It returns the hidden states of the last layer. No remote code is run and no pickle is read.

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
    """Raise if a head would be larger than the hidden states of a backbone.

    Raises:
        InvalidOptionError: It would.
    """
    if max(dims) > (hidden := int(backbone.get_embedding_dimension())):
        raise InvalidOptionError(
            f"The backbone {model!r} has hidden states of {hidden} components, so no head of {max(dims)} can be "
            f"fitted. Give --dims of at most {hidden}."
        )


def prompts_of(name_or_folder: str) -> dict[str, str]:
    """Return a shipped model's prompts for ``"query"`` and ``"document"``, or an empty dict for a folder."""
    shipped = shipped_model(name_or_folder)
    return {} if shipped is None else dict(shipped.settings["prompts"])


def second_moment(
    backbone: Transformer,
    texts: Sequence[str],
    tokens_per_batch: int = 512,
    progress: Callable[[int], object] | None = None,
) -> torch.Tensor:
    """Return the mean outer product of the L2-normalised hidden states of ``texts``.

    Args:
        backbone: A transformer that returns ``token_embeddings``.
        texts: Texts, truncated to the backbone's maximum length. Padding is ignored, special tokens are not.
        tokens_per_batch: Padded tokens per batch.
        progress: Called after each batch with its number of texts.

    Returns:
        A float64 matrix of shape ``(hidden, hidden)`` and trace 1, on the CPU.

    Raises:
        ValueError: There are no texts.
    """
    if not texts:
        raise ValueError("There are no texts, so there is no second moment. Give at least one.")
    return mean_outer_product(states for _, states in token_states(backbone, texts, tokens_per_batch, progress))


def mean_outer_product(states: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the mean outer product of the rows of all matrices ``(tokens, hidden)``.

    It is in float64, of shape ``(hidden, hidden)``.
    """
    total, tokens = torch.zeros(()), 0
    for one in states:
        rows = one.double()
        total = total + rows.T @ rows
        tokens += len(rows)
    return total / tokens


def token_states(
    backbone: Transformer,
    texts: Sequence[str],
    tokens_per_batch: int = 512,
    progress: Callable[[int], object] | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the position and the L2-normalised hidden states ``(tokens, hidden)`` of each text, on the CPU.

    The texts come in no particular order. The arguments are those of :func:`second_moment`.
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
    tokens_per_batch: int = 512,
    progress: Callable[[int], object] | None = None,
) -> list[torch.Tensor]:
    """Return :func:`token_states` in the order of the texts, in half precision, to hold them in memory."""
    found = [torch.empty(0)] * len(texts)
    for index, states in token_states(backbone, texts, tokens_per_batch, progress):
        found[index] = states.half()
    return found


def falling_rate(optimizer: torch.optim.Optimizer, steps: int, warmup: int = 20) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a schedule in which the learning rate rises for ``warmup`` steps and then falls linearly to 2 %."""
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warmup) * max(0.02, 1 - step / max(steps, 1))
    )


def captured(moment: torch.Tensor, weight: torch.Tensor) -> float:
    """Return the share of a second moment (of any trace) within the span of the orthonormal rows of ``weight``."""
    rows = weight.detach().to(moment)
    return float(((rows @ moment) * rows).sum() / moment.trace())


def principal_heads(moment: torch.Tensor, dims: Iterable[int]) -> MatryoshkaHeads:
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
