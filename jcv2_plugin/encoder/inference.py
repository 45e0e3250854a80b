"""Encoding with batches by token budget, which replaces sentence-transformers' encoding loop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from jcv2_plugin.encoder.parallel import side_by_side

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder

_WINDOW_TEXTS = 1024  # texts tokenised at a time


def encode_batches(
    encoder: JinaColbertEncoder,
    texts: list[str],
    budget: int,
    *,
    prompt: str | None,
    batch_size: int,
    show_progress_bar: bool,
    save_to_cpu: bool,
    normalize_embeddings: bool,
    token_pooling: Any,
    task: str | None,
    device: torch.device,
    **kwargs: Any,
) -> Iterator[tuple[int, Tensor]]:
    """Yield the position and the token vectors of each text, in any order.

    ``budget`` are the padded tokens per batch. The other arguments are those of sentence-transformers' ``_inference``.
    """
    if _in_training(encoder):  # the check takes a fraction of the time of eval(), which matters for a single query
        encoder.eval()
    threads = _threads_to_deal_out(encoder, device)
    preprocessing = {key: value for key, value in kwargs.items() if key == "processing_kwargs"}

    def batches() -> Iterator[tuple[list[int], dict[str, Any]]]:
        # Sort by characters first, so that texts tokenised together have similar lengths; then by tokens.
        order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
        for start in range(0, len(texts), _WINDOW_TEXTS):
            window = order[start : start + _WINDOW_TEXTS]
            chosen = [texts[position] for position in window]
            for rows, features in encoder.feature_batches(
                chosen, budget, batch_size, parts=threads, prompt=prompt, task=task, **preprocessing
            ):
                yield [window[row] for row in rows], features

    def vectors(batch: tuple[list[int], dict[str, Any]]) -> tuple[list[int], list[Tensor]]:
        positions, features = batch
        with torch.inference_mode():
            output = encoder(batch_to_device(features, device), task=task, **kwargs)
            mask = output["attention_mask"].bool()
            # One selection and one transfer per batch, because each of them waits for the accelerator.
            kept = output["token_embeddings"][mask]
            if normalize_embeddings:
                kept = F.normalize(kept, p=2, dim=-1)
            if save_to_cpu:
                kept = kept.cpu()
            encoded = list(kept.split(mask.sum(dim=1).tolist()))
        if token_pooling is not None:
            encoded = token_pooling.pool(encoded, task=task)
        return positions, encoded

    noun = "queries" if task == "query" else "documents"
    with tqdm(total=len(texts), desc=f"Encoding {noun}", disable=not show_progress_bar) as progress:
        for positions, encoded in side_by_side(vectors, batches(), threads):
            yield from zip(positions, encoded, strict=True)
            progress.update(len(positions))


def _threads_to_deal_out(encoder: JinaColbertEncoder, device: torch.device) -> int:
    """Return the number of torch threads to spread batches over; 1 if operators or another runtime use them all."""
    if device.type != "cpu" or getattr(encoder[0], "runs_own_threads", False):
        return 1
    # Autocast only applies to the thread that enabled it.
    return 1 if torch.is_autocast_enabled("cpu") else torch.get_num_threads()


def _in_training(module: nn.Module) -> bool:
    """Return whether any module is in training mode. Faster than ``modules()``, which also builds names."""
    remaining = [module]
    while remaining:
        one = remaining.pop()
        if one.training:
            return True
        remaining.extend(one.children())
    return False
