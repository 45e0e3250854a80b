"""Encoding with batches by token budget, which replaces sentence-transformers' encoding loop."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.util import batch_to_device
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from jcv2_plugin.encoder.batching import occupied_columns, plan_batches, take_rows
from jcv2_plugin.encoder.heads import MatryoshkaHeads, as_dims
from jcv2_plugin.encoder.parallel import side_by_side
from jcv2_plugin.encoder.windows import (
    LONG_DOCUMENTS,
    LongDocuments,
    WindowSplitter,
    content_capacity,
    plain_tokenizer,
)
from jcv2_plugin.errors import DocumentTooLongError, InvalidOptionError

if TYPE_CHECKING:
    from sentence_transformers import MultiVectorEncoder as _Base
else:
    _Base = object

_WINDOW_TEXTS = 1024  # texts tokenised at a time
_LEAST_TOKENS = 256  # per batch when few texts are spread over several threads; smaller batches are mostly overhead
_NO_CAP = 2**31


class TokenBudgetInference(_Base):
    """Encoding methods of :class:`~jcv2_plugin.JinaColbertEncoder`."""

    _splitter: WindowSplitter | None
    _plain_tokenizer: Tokenizer | None
    _on_device: bool
    _tokenizer_lock: threading.RLock

    if TYPE_CHECKING:  # defined by JinaColbertEncoder

        @property
        def heads(self) -> MatryoshkaHeads | None: ...  # noqa: D102
        @property
        def document_length(self) -> int: ...  # noqa: D102
        @property
        def max_document_length(self) -> int: ...  # noqa: D102
        @property
        def tokens_per_batch(self) -> int: ...  # noqa: D102
        def resolve_dim(self, dim: int | None) -> int: ...  # noqa: D102

    def _forget_derived(self) -> None:
        """Reset everything derived from the modules, after one of them has changed."""
        self._splitter = None
        self._plain_tokenizer = None
        self._on_device = False

    def __getstate__(self) -> dict[str, Any]:
        # Locks and compiled objects cannot be pickled; a copy or worker process creates its own.
        return {**self.__dict__, "_splitter": None, "_plain_tokenizer": None, "_tokenizer_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {**state, "_tokenizer_lock": threading.RLock()}
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenise texts as sentence-transformers does.

        Only one thread tokenises at a time, because each call sets truncation and padding on the shared tokenizer.
        """
        with self._tokenizer_lock:
            return super().preprocess(inputs, prompt=prompt, **kwargs)

    def encode_query(  # type: ignore[override]
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """Encode queries. Adds the query prompt (marker) and, if the model uses query expansion, [MASK] tokens.

        Args:
            inputs: One text or an iterable of texts.
            prompt_name: Name of a prompt to use instead of ``"query"``.
            prompt: Text to prepend instead of a named prompt.
            **kwargs: See :meth:`encode`.

        Returns:
            Token vectors as in :meth:`encode`; each query has shape ``(query tokens, dim)``.
        """
        if prompt_name is None and prompt is None and "query" in self.prompts:
            prompt_name = "query"
        return self.encode(inputs, prompt_name, prompt, task="query", **kwargs)

    def encode_document(  # type: ignore[override]
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """Encode documents. Adds the document prompt (marker) and drops vectors of tokens on the skip list.

        Args:
            inputs: One text or an iterable of texts.
            prompt_name: Name of a prompt to use instead of ``"document"``.
            prompt: Text to prepend instead of a named prompt.
            **kwargs: See :meth:`encode`.

        Returns:
            Token vectors as in :meth:`encode`; each document has shape ``(scored tokens, dim)``.
        """
        if prompt_name is None and prompt is None and "document" in self.prompts:
            prompt_name = "document"
        return self.encode(inputs, prompt_name, prompt, task="document", **kwargs)

    def encode(  # type: ignore[override]
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
        *,
        dim: int | Sequence[int] | None = None,
        tokens_per_batch: int | None = None,
        long_documents: LongDocuments = "truncate",
        **kwargs: Any,
    ) -> Any:
        """Encode texts. Prefer :meth:`encode_query` and :meth:`encode_document`, which set the task.

        Args:
            inputs: One text or an iterable of texts.
            prompt_name: Name of one of the model's prompts.
            prompt: Text to prepend to each input.
            batch_size: Maximum number of texts per batch. If None, only the token budget applies.
            show_progress_bar: Whether to show a progress bar. If None, this depends on the logging level.
            dim: Matryoshka dimension, or several, which take a single pass through the backbone. If None, the model's
                default.
            tokens_per_batch: Padded tokens per batch. If None, :attr:`tokens_per_batch`.
            long_documents: What to do with a document longer than ``document_length``. ``"truncate"`` cuts it, as
                ColBERT does; ``"split"`` encodes it in windows and concatenates their vectors; ``"error"`` raises
                :class:`~jcv2_plugin.errors.DocumentTooLongError`.
            **kwargs: Passed to sentence-transformers' ``MultiVectorEncoder.encode`` (``convert_to_numpy``, ``device``,
                ``pool``, ``token_pooling``, ...).

        Returns:
            For one ``dim``, a list of tensors (arrays with ``convert_to_numpy=True``) of shape ``(tokens, dim)``, or a
            single one for a single text. For several, a dict that maps each dim to that.

        Raises:
            UnknownDimError: If the model has no head for a dim.
            TypeError: If an input is not a string.
            DocumentTooLongError: If a document is too long and ``long_documents`` is ``"error"``.
        """
        if long_documents not in LONG_DOCUMENTS:
            raise InvalidOptionError(f"long_documents must be one of {LONG_DOCUMENTS}, got {long_documents!r}.")
        if not isinstance(inputs, str):
            inputs = inputs.tolist() if isinstance(inputs, np.ndarray) else list(inputs)
        for text in [inputs] if isinstance(inputs, str) else inputs:
            if not isinstance(text, str):
                raise TypeError(f"Texts must be str, got {type(text).__name__}: {text!r:.80}.")
        several = isinstance(dim, Iterable)
        dims = self._resolve_dims(dim)
        if several and (kwargs.get("token_pooling") is not None or kwargs.get("output_value", "") is None):
            raise ValueError("token_pooling and output_value=None take one dim at a time.")
        result = super().encode(
            inputs,
            prompt_name,
            prompt,
            batch_size=_NO_CAP if batch_size is None else batch_size,
            show_progress_bar=show_progress_bar,
            **self._dim_argument(dims),
            tokens_per_batch=tokens_per_batch,
            long_documents=long_documents,
            **kwargs,
        )
        if not several:
            return result
        if isinstance(result, list):
            parts = [MatryoshkaHeads.split(vectors, dims) for vectors in result]
            return {one: [part[one] for part in parts] for one in dims}
        return MatryoshkaHeads.split(result, dims)

    def _resolve_dims(self, dim: int | Iterable[int] | None) -> tuple[int, ...]:
        if (heads := self.heads) is not None:
            return heads.resolve_dims(dim)
        wanted = (None,) if dim is None else as_dims(dim)
        return tuple(self.resolve_dim(one) for one in wanted)

    def _dim_argument(self, dims: tuple[int, ...]) -> dict[str, Any]:
        return {"dim": dims} if self.heads is not None else {}

    def get_model_kwargs(self) -> list[str]:
        """Return the keyword arguments that ``encode`` takes in addition to sentence-transformers' own."""
        return [*super().get_model_kwargs(), "tokens_per_batch", "long_documents"]

    def _inference(self, inputs: list[Any], **kwargs: Any) -> list[Any]:
        """Encode a list of texts on one device. Called by ``encode``, in this process or in a worker."""
        tokens_per_batch = kwargs.pop("tokens_per_batch", None)
        long_documents = kwargs.pop("long_documents", "truncate")
        if kwargs["output_value"] is None:
            kwargs["batch_size"] = min(kwargs["batch_size"], 32)
            return super()._inference(inputs, **kwargs)
        owners = list(range(len(inputs)))
        if kwargs["task"] == "document" and long_documents != "truncate":
            inputs, owners = self._windows(inputs, kwargs["prompt"], long_documents)
        vectors: list[Tensor | None] = [None] * len(inputs)
        kwargs["device"] = self._inference_device(kwargs.get("device"))
        budget = self.tokens_per_batch if tokens_per_batch is None else tokens_per_batch
        for position, encoded in self._encode_batches(inputs, budget, **kwargs):
            vectors[position] = encoded
        return _join_windows([one for one in vectors if one is not None], owners)

    def _encode_batches(
        self,
        texts: list[str],
        budget: int,
        *,
        prompt: str | None,
        batch_size: int,
        show_progress_bar: bool,
        output_value: str | None,
        save_to_cpu: bool,
        normalize_embeddings: bool,
        token_pooling: Any,
        task: str | None,
        device: Any = None,
        **kwargs: Any,
    ) -> Iterator[tuple[int, Tensor]]:
        if _in_training(self):  # the check takes a tenth of the time of eval(), which matters for a single query
            self.eval()
        threads = self._threads_to_deal_out(device)
        preprocessing = {key: value for key, value in kwargs.items() if key == "processing_kwargs"}

        def batches() -> Iterator[tuple[list[int], dict[str, Any]]]:
            # Sort by characters first, so that texts tokenised together have similar lengths; then by tokens.
            order = sorted(range(len(texts)), key=lambda position: -len(texts[position]))
            for start in range(0, len(texts), _WINDOW_TEXTS):
                window = order[start : start + _WINDOW_TEXTS]
                chosen = [texts[position] for position in window]
                for rows, features in self.feature_batches(
                    chosen, budget, batch_size, parts=threads, prompt=prompt, task=task, **preprocessing
                ):
                    yield [window[row] for row in rows], features

        def vectors(batch: tuple[list[int], dict[str, Any]]) -> tuple[list[int], list[Tensor]]:
            positions, features = batch
            with torch.inference_mode():
                output = self(batch_to_device(features, device), task=task, **kwargs)
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

    def _inference_device(self, device: Any) -> Any:
        """Return the device to encode on. Module placement is checked once: each check would cost a query 5%."""
        if device is None and self._on_device:
            return self.device
        resolved = self._resolve_inference_device(device)
        self._on_device = not self._placement_is_delegated
        return resolved

    def _threads_to_deal_out(self, device: Any) -> int:
        """Return the number of torch threads to spread batches over; 1 if operators or another runtime use them all."""
        if torch.device(device).type != "cpu" or getattr(self[0], "runs_own_threads", False):
            return 1
        # Autocast only applies to the thread that enabled it.
        return 1 if torch.is_autocast_enabled("cpu") else torch.get_num_threads()

    def feature_batches(
        self, texts: list[str], budget: int, max_texts: int, *, parts: int = 1, **preprocess: Any
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Tokenise texts and group them by length into batches within a token budget.

        Args:
            texts: Texts, at least one.
            budget: Padded tokens per batch (actual tokens if the attention is unpadded).
            max_texts: Maximum number of texts per batch.
            parts: Number of batches to aim for if there are few texts, so that they can be encoded in parallel.
            **preprocess: Passed to sentence-transformers' ``preprocess`` (``prompt``, ``task``, ...).

        Yields:
            The positions of some texts in ``texts``, and their features on the CPU. Every text occurs once.
        """
        features = self.preprocess(texts, **preprocess)
        if len(texts) == 1:  # no batching and no padding to remove; saves latency for a single query
            yield [0], features
            return
        if "attention_mask" not in features:  # unpadded, for flash attention: the budget counts actual tokens
            lengths = features["cu_seq_lens_q"].diff().tolist()
            for rows in plan_batches(lengths, budget, max_texts):
                yield rows, self.preprocess([texts[row] for row in rows], **preprocess)
            return
        first, last = occupied_columns(features)
        lengths = (last - first).tolist()
        budget = min(budget, max(_LEAST_TOKENS, -(-sum(lengths) // parts)))
        for rows in plan_batches(lengths, budget, max_texts):
            yield rows, take_rows(features, rows, int(first[rows].min()), int(last[rows].max()))

    def _windows(
        self, texts: list[str], prompt: str | None, long_documents: LongDocuments
    ) -> tuple[list[str], list[int]]:
        splitter = self._window_splitter(prompt)
        windows: list[str] = []
        owners: list[int] = []
        for position, (text, tokens) in enumerate(zip(texts, splitter.count(texts), strict=True)):
            if tokens > splitter.capacity and long_documents == "error":
                raise DocumentTooLongError(
                    f"Document {position} has {tokens} tokens, {splitter.capacity} fit document_length="
                    f"{self.document_length}: {text!r:.60}. Raise document_length (up to "
                    f"{self.max_document_length}), or pass long_documents='split' or 'truncate'."
                )
            pieces = splitter.windows(text, tokens)
            windows.extend(pieces)
            owners.extend([position] * len(pieces))
        return windows, owners

    def _window_splitter(self, prompt: str | None) -> WindowSplitter:
        with self._tokenizer_lock:
            capacity = content_capacity(self.tokenizer, prompt or "", self.document_length)
            if self._splitter is None or self._splitter.capacity != capacity:
                self._splitter = WindowSplitter(self.plain_tokenizer, capacity)
            return self._splitter

    @property
    def plain_tokenizer(self) -> Tokenizer:
        """A cached copy of the tokenizer without truncation and padding. XLM-RoBERTa's takes 300 MB."""
        with self._tokenizer_lock:
            if self._plain_tokenizer is None:
                self._plain_tokenizer = plain_tokenizer(self.tokenizer)
            return self._plain_tokenizer


def _in_training(module: nn.Module) -> bool:
    """Return whether any module is in training mode. Ten times faster than ``modules()``, which also builds names."""
    return module.training or any(_in_training(child) for child in module._modules.values() if child is not None)


def _join_windows(vectors: list[Tensor], owners: list[int]) -> list[Tensor]:
    """Concatenate the windows of each text, in order."""
    joined: list[list[Tensor]] = []
    for one, owner in zip(vectors, owners, strict=True):
        if owner == len(joined):
            joined.append([])
        joined[owner].append(one)
    return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in joined]
