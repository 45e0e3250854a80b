"""Encoding by token budget: what ``JinaColbertEncoder`` does differently from sentence-transformers' loop."""

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
_LEAST_TOKENS = 256  # a batch, where few texts are dealt out to several threads: less is mostly overhead
_NO_CAP = 2**31


class TokenBudgetInference(_Base):
    """The encoding methods of :class:`~jcv2_plugin.JinaColbertEncoder`."""

    _splitter: WindowSplitter | None
    _plain_tokenizer: Tokenizer | None
    _on_device: bool
    _tokenizer_lock: threading.RLock

    if TYPE_CHECKING:  # of JinaColbertEncoder

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
        """Drop what was computed from the modules, after one was changed."""
        self._splitter = None
        self._plain_tokenizer = None
        self._on_device = False

    def __getstate__(self) -> dict[str, Any]:
        # Locks and compiled objects do not travel; a copy and a worker process make their own.
        return {**self.__dict__, "_splitter": None, "_plain_tokenizer": None, "_tokenizer_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = {**state, "_tokenizer_lock": threading.RLock()}
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenise, as sentence-transformers does. One thread at a time: a call sets truncation and padding
        on the tokenizer itself, so that another's would otherwise apply.
        """
        with self._tokenizer_lock:
            return super().preprocess(inputs, prompt=prompt, **kwargs)

    def encode_query(  # type: ignore[override]
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """Encode queries: marked, and padded with attended [MASK] tokens where the model does so.

        Args:
            inputs: One text, or any iterable of texts.
            prompt_name: A prompt of the model's other than ``"query"``.
            prompt: A text to put in front instead.
            **kwargs: See :meth:`encode`.

        Returns:
            As :meth:`encode`; each query has shape ``(query tokens, dim)``.
        """
        if prompt_name is None and prompt is None and "query" in self.prompts:
            prompt_name = "query"
        return self.encode(inputs, prompt_name, prompt, task="query", **kwargs)

    def encode_document(  # type: ignore[override]
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """Encode documents: marked, punctuation left out as the model's skip list says.

        Args:
            inputs: One text, or any iterable of texts.
            prompt_name: A prompt of the model's other than ``"document"``.
            prompt: A text to put in front instead.
            **kwargs: See :meth:`encode`.

        Returns:
            As :meth:`encode`; each document has shape ``(scored tokens, dim)``.
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
        """Encode texts; use :meth:`encode_query` or :meth:`encode_document`, which set the task.

        Args:
            inputs: One text, or any iterable of texts.
            prompt_name: Name of a prompt of the model's.
            prompt: A text to put in front of each input.
            batch_size: At most that many texts a batch; None leaves it to the token budget alone.
            show_progress_bar: Show one; None asks the logging level.
            dim: The Matryoshka dimension. Several dims cost one backbone pass. None is the model's default.
            tokens_per_batch: Padded tokens a batch; None takes :attr:`tokens_per_batch`.
            long_documents: What to do with a document over ``document_length``: ``"truncate"`` cuts it, as
                ColBERT does; ``"split"`` encodes it in windows and puts their vectors together; ``"error"``
                raises :class:`~jcv2_plugin.errors.DocumentTooLongError`.
            **kwargs: As sentence-transformers' ``MultiVectorEncoder.encode`` (``convert_to_numpy``,
                ``device``, ``pool``, ``token_pooling``, ...).

        Returns:
            For one ``dim`` a list of tensors (arrays with ``convert_to_numpy=True``) of shape ``(tokens,
            dim)``, bare for a single text. For several, a dict from dim to that.

        Raises:
            UnknownDimError: The model has no head for a dim.
            TypeError: An input is not a string.
            DocumentTooLongError: See ``long_documents``.
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
        """Keyword arguments that ``encode`` takes beyond sentence-transformers' own."""
        return [*super().get_model_kwargs(), "tokens_per_batch", "long_documents"]

    def _inference(self, inputs: list[Any], **kwargs: Any) -> list[Any]:
        """Encode a list of texts on one device; called by ``encode``, here or in a worker process."""
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
        if _in_training(self):  # asking costs a tenth of setting all anew, which a query would feel
            self.eval()
        threads = self._threads_to_deal_out(device)
        preprocessing = {key: value for key, value in kwargs.items() if key == "processing_kwargs"}

        def batches() -> Iterator[tuple[list[int], dict[str, Any]]]:
            # By characters first, so that texts tokenised together are of a length; by tokens within.
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
                # One selection and one transfer for the batch: on an accelerator each waits for it.
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
        """Where to encode. That all modules are there is asked once: to look at each tensor costs a query 5 %."""
        if device is None and self._on_device:
            return self.device
        resolved = self._resolve_inference_device(device)
        self._on_device = not self._placement_is_delegated
        return resolved

    def _threads_to_deal_out(self, device: Any) -> int:
        """Threads of torch that batches are dealt out to; 1 where an operator, or a runtime, has them all."""
        if torch.device(device).type != "cpu" or getattr(self[0], "runs_own_threads", False):
            return 1
        # Autocast holds for the thread that it is called in.
        return 1 if torch.is_autocast_enabled("cpu") else torch.get_num_threads()

    def feature_batches(
        self, texts: list[str], budget: int, max_texts: int, *, parts: int = 1, **preprocess: Any
    ) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Tokenise texts and deal them into batches by length, within a budget of padded tokens.

        Args:
            texts: Texts, at least one.
            budget: Padded tokens a batch (real ones where the attention is unpadded).
            max_texts: Texts a batch, at most.
            parts: Batches to make of few texts too, where they are worked at side by side.
            **preprocess: As sentence-transformers' ``preprocess`` (``prompt``, ``task``, ...).

        Yields:
            Positions in ``texts``, and the features of these texts, on the CPU. Every text comes once.
        """
        features = self.preprocess(texts, **preprocess)
        if len(texts) == 1:  # nothing to deal out, and no padding to cut off: a query's latency is felt
            yield [0], features
            return
        if "attention_mask" not in features:  # unpadded, for flash attention: the budget counts real tokens
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
        """A copy of the tokenizer that neither truncates nor pads, made once: XLM-RoBERTa's takes 300 MB."""
        with self._tokenizer_lock:
            if self._plain_tokenizer is None:
                self._plain_tokenizer = plain_tokenizer(self.tokenizer)
            return self._plain_tokenizer


def _in_training(module: nn.Module) -> bool:
    """Whether any module is in training mode. ``modules()`` would cost ten times as much, for names nobody asks for."""
    return module.training or any(_in_training(child) for child in module._modules.values() if child is not None)


def _join_windows(vectors: list[Tensor], owners: list[int]) -> list[Tensor]:
    """Put the windows of each text together again, in order."""
    joined: list[list[Tensor]] = []
    for one, owner in zip(vectors, owners, strict=True):
        if owner == len(joined):
            joined.append([])
        joined[owner].append(one)
    return [parts[0] if len(parts) == 1 else torch.cat(parts) for parts in joined]
