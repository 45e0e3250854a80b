"""``JinaColbertEncoder``: Jina-ColBERT-v2 and similar models as a sentence-transformers ``MultiVectorEncoder``."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling, MultiVectorMask
from sentence_transformers.util import get_device_name
from tokenizers import Tokenizer
from torch import nn

from jcv2_plugin.checks import as_dims, check_integer, check_pool_factor
from jcv2_plugin.documents import as_list
from jcv2_plugin.encoder import forks, loading
from jcv2_plugin.encoder.batching import default_tokens_per_batch, occupied_columns, plan_batches, take_rows
from jcv2_plugin.encoder.fingerprint import weights_fingerprint
from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.hub import ModelSource
from jcv2_plugin.encoder.inference import encode_batches
from jcv2_plugin.encoder.int8 import QuantizedTransformer
from jcv2_plugin.encoder.scored_tokens import ScoredToken, scored_tokens
from jcv2_plugin.encoder.shipped import shipped_model
from jcv2_plugin.encoder.short_texts import ShortTexts
from jcv2_plugin.encoder.skiplist import SKIPLISTS, Skiplist, skiplist_words
from jcv2_plugin.encoder.windows import (
    LONG_DOCUMENTS,
    LongDocuments,
    TokenCounter,
    TokenizedTexts,
    WindowSplitter,
    content_capacity,
    join_windows,
    plain_tokenizer,
)
from jcv2_plugin.errors import DocumentTooLongError, InvalidOptionError, ModelLayoutError, UnknownDimError
from jcv2_plugin.files import filled_folder
from jcv2_plugin.lazy import require_packages

QueryEngine = Literal["torch", "openvino"]
QUERY_ENGINES: tuple[str, ...] = get_args(QueryEngine)
_NO_CAP = 2**31
_LEAST_TOKENS = 256  # per batch when few texts are spread over several threads; smaller batches are mostly overhead


class JinaColbertEncoder(MultiVectorEncoder):
    """Encode queries and documents into token vectors at one or several Matryoshka dimensions.

    Load it with :meth:`from_pretrained`. It is a ``MultiVectorEncoder`` with all its features (``similarity``,
    multi-process encoding, evaluators, trainer). In addition, it has an untied projection head per dimension, loads the
    official checkpoint without remote code, and batches by token budget.

    Attributes:
        source: Where the model was loaded from. None if it was assembled from modules.
        query_engine: ``"torch"`` or ``"openvino"``; see :meth:`from_pretrained`. Never saved with the model.
        tokenizer_lock: Hold it while calling ``tokenizer``: each call sets truncation and padding on the shared object.

    Example:
        >>> encoder = JinaColbertEncoder.from_pretrained("mini")
        >>> query = encoder.encode_query("what is late interaction?", dim=64)
        >>> documents = encoder.encode_document(["Token vectors are compared one by one."], dim=64)
        >>> encoder.similarity([query], documents).shape
        torch.Size([1, 1])
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        modules: Iterable[nn.Module] | Mapping[str, nn.Module] | None = None,
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.source: ModelSource | None = None
        self._card: str | None = None
        self._tokens_per_batch: int | None = None
        self.query_engine: QueryEngine = "torch"
        self._short_texts: ShortTexts | None = None
        self._preparing = threading.Lock()
        self.tokenizer_lock = threading.RLock()
        if model_name_or_path is not None:
            hub = {name: kwargs[name] for name in loading.HUB_OPTIONS if kwargs.get(name) is not None}
            options = {name: kwargs[name] for name in loading.LOADING_OPTIONS if kwargs.get(name) is not None}
            loaded = loading.load_model(
                model_name_or_path, device=kwargs.get("device"), revision=revision, options=options, **hub
            )
            self.source, self._card, modules = loaded.source, loaded.card, loaded.modules
            if "device_map" in options.get("model_kwargs", {}):  # stay where the backbone was put
                kwargs["device"] = str(next(loaded.modules[0].parameters()).device)
            kwargs |= loaded.settings(kwargs)
        if isinstance(modules, Mapping):
            modules = modules.values()
        super().__init__(modules=None if modules is None else loading.projection_as_heads(list(modules)), **kwargs)
        self.forget_derived()
        forks.watch(self)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dims: int | Sequence[int] | None = None,
        revision: str | None = None,
        device: str | None = None,
        dtype: str | torch.dtype | None = None,
        attn_implementation: str | None = None,
        document_length: int | None = None,
        skiplist: Skiplist | Literal["default"] | None = "default",
        tokens_per_batch: int | None = None,
        quantized: bool = True,
        query_engine: QueryEngine = "torch",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        local_files_only: bool = False,
    ) -> JinaColbertEncoder:
        """Load an encoder by name or from a folder. Remote code is never run and pickle is never loaded.

        Args:
            name_or_path: A bundled model (``"mini"``); a folder or hub repository in the layout of
                ``jinaai/jina-colbert-v2``; a folder written by :meth:`save_pretrained`; or any checkpoint that
                sentence-transformers' ``MultiVectorEncoder`` loads (its own, PyLate's and Stanford's layouts), as a
                model with one head.
            dims: Matryoshka dimensions to load; the first is the default. If None, those in the checkpoint. For
                jina-colbert-v2, ``dims=(128, 64)`` also loads the 64-dimensional head, and only that head, from the
                sibling ``-64`` repository or folder.
            revision: Hub revision (branch, tag or commit).
            device: ``"cpu"``, ``"cuda"``, ... If None, the best available device.
            dtype: Dtype of the weights, e.g. ``torch.bfloat16``. If None, that of the checkpoint on CUDA; bfloat16 on a
                CPU that multiplies bfloat16 in hardware, if that is the checkpoint's own dtype; and float32 elsewhere.
            attn_implementation: ``"sdpa"``, ``"eager"`` or ``"flash_attention_2"``. If None, flash attention where it
                is installed and can be used, otherwise SDPA.
            document_length: Window for documents in tokens, markers included. If None, the model's default (300 for
                jina-colbert-v2, which supports up to 8,190).
            skiplist: Which document tokens are not scored: ``"stanford"``, ``"pieces"`` (see
                :mod:`jcv2_plugin.encoder.skiplist`) or None. ``"default"`` keeps the model's skip list. For the
                official checkpoint this is ``"stanford"``, which its authors used for evaluation.
            tokens_per_batch: Padded tokens per batch. If None, the default for the device.
            quantized: Whether to encode with the checkpoint's int8 copy on a CPU, if it has one
                (:func:`jcv2_plugin.quantize`).
            query_engine: What encodes single short texts, such as queries, in float32 on a CPU: ``"torch"``, or
                ``"openvino"`` (extra ``int8``), which is faster and gives the same vectors to 1e-4, but takes longer to
                load and more memory (see docs/encoder.md). With ``"openvino"``, ``dtype=None`` on a CPU is float32.
            token: Hub token.
            cache_folder: Hub cache folder.
            local_files_only: Whether to use only local files and never the hub.

        Raises:
            ModelNotFoundError: If there is no such model, or the hub cannot be reached.
            ModelLayoutError: If the folder is not a multi-vector model, or needs remote code or pickle.
            UnknownDimError: If there is no head for one of ``dims``.
            InvalidOptionError: If ``document_length`` or ``tokens_per_batch`` is out of range, or there is no such
                ``query_engine``.
            MissingPackageError: If the int8 copy or ``query_engine="openvino"`` would be used, but OpenVINO is not
                installed.
        """
        wanted = None if dims is None else as_dims(dims)
        if query_engine not in QUERY_ENGINES:
            raise InvalidOptionError(f"query_engine must be one of {QUERY_ENGINES}, got {query_engine!r}.")
        if query_engine == "openvino":
            otherwise = "Or leave query_engine out: torch gives the same vectors."
            require_packages("query_engine='openvino'", ("openvino",), "int8", otherwise)
            if dtype is None and (device or get_device_name()) == "cpu":
                dtype = torch.float32
        loaded = loading.load_model(
            os.fspath(name_or_path),
            dims=wanted,
            device=device,
            quantized=quantized,
            revision=revision,
            options={"model_kwargs": {"dtype": dtype, "attn_implementation": attn_implementation}},
            token=token,
            cache_folder=cache_folder,
            local_files_only=local_files_only,
        )
        with loading.layout_errors(loaded.source):
            encoder = cls(modules=loaded.modules, device=device, **loaded.settings({}))
        encoder.source, encoder._card = loaded.source, loaded.card
        if (heads := encoder.heads) is None:
            for dim in wanted or ():
                encoder.resolve_dim(dim)
        elif wanted is not None and wanted != heads.dims:
            encoder.set_heads(loading.keep_heads(heads, wanted))
        encoder.tokens_per_batch = tokens_per_batch
        if document_length is not None:
            encoder.document_length = document_length
        if skiplist != "default":
            encoder.skiplist = skiplist
        encoder.query_engine = query_engine
        encoder.prepare()
        if not isinstance(encoder.backbone, QuantizedTransformer):  # its network would not survive a fork
            with loading.layout_errors(loaded.source):  # here, and not at the user's first text
                encoder.query_vectors(["text"], encoder.dims[0])
                encoder.document_vectors(["text"], encoder.dims[0])
        return encoder

    def prepare(self) -> None:
        """Build what :attr:`query_engine` needs now, rather than for the first query."""
        if self.query_engine != "openvino" or self._short_texts is not None or forks.is_child():
            return
        with self._preparing:
            if self._short_texts is None and type(self.backbone) is Transformer:
                self._short_texts = ShortTexts(self.backbone)

    def save_pretrained(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save the model with all heads, so that :meth:`from_pretrained` can load it.

        It is written beside the folder, or to a temporary folder in it if it exists, and then moved.

        Args:
            path: Folder to write; created if it does not exist. Files of the same names in it are replaced.
            *args: Passed to sentence-transformers' ``save_pretrained``.
            **kwargs: Passed to sentence-transformers' ``save_pretrained``.

        Raises:
            ValueError: If ``safe_serialization=False``, which would write pickle.
            FileExistsError: If a folder in an existing folder is a link.
        """
        if kwargs.get("safe_serialization") is False:
            raise ValueError("safe_serialization=False would write pickle, which this package never reads.")
        with filled_folder(Path(path)) as folder:
            super().save_pretrained(str(folder), *args, **kwargs)
            card = folder / "README.md"
            if self._card is not None and card.exists() and "generated_from_trainer" not in self.model_card_data.tags:
                card.write_text(self._card, encoding="utf-8")

    def export(self, path: str | os.PathLike[str], dim: int | None = None) -> None:
        """Export the model with one head to a folder that plain sentence-transformers and PyLate can load."""
        from jcv2_plugin.encoder.export import export_single_head

        export_single_head(self, Path(path), self.resolve_dim(dim))

    def set_heads(self, heads: MatryoshkaHeads) -> None:
        """Replace the model's heads. The new ones are moved to the device and dtype of the old ones.

        Raises:
            ModelLayoutError: If the model has no heads to replace.
        """
        old = self.heads
        if old is None:
            raise ModelLayoutError(f"{self.name!r} has no linear heads to replace.")
        parameter = next(old.parameters())
        self[list(self).index(old)] = heads.to(parameter.device, parameter.dtype)
        self.forget_derived()

    def forget_derived(self) -> None:
        """Reset everything derived from the modules. Call it after replacing one of them."""
        self._splitter: WindowSplitter | None = None
        self._plain_tokenizer: Tokenizer | None = None
        self._short_texts = None

    def __getstate__(self) -> dict[str, Any]:
        # Locks and compiled objects cannot be pickled; a copy or worker process creates its own.
        derived = ("_splitter", "_plain_tokenizer", "_short_texts", "_preparing", "tokenizer_lock")
        return {**self.__dict__, **dict.fromkeys(derived)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        locks = {"tokenizer_lock": threading.RLock(), "_preparing": threading.Lock()}
        super().__setstate__({**state, **locks})  # type: ignore[no-untyped-call]
        forks.watch(self)

    # Model

    @property
    def backbone(self) -> Transformer:
        """The transformer and its tokenizer, the first module of the pipeline."""
        first: Any = self[0]
        if not isinstance(first, Transformer):
            raise TypeError(f"The first module must be a Transformer, got {type(first).__name__}.")
        backbone: Transformer = first
        return backbone

    @property
    def heads(self) -> MatryoshkaHeads | None:
        """The projection heads; None if the pipeline does not end in a linear projection."""
        return next((module for module in self if isinstance(module, MatryoshkaHeads)), None)

    @property
    def scoring_mask(self) -> MultiVectorMask | None:
        """The module that selects which tokens are scored, if the pipeline has one."""
        return next((module for module in self if isinstance(module, MultiVectorMask)), None)

    @property
    def dims(self) -> tuple[int, ...]:
        """Dimensions that the model has heads for; the first is the default."""
        if (heads := self.heads) is not None:
            return heads.dims
        return (int(self.get_embedding_dimension() or 0),)

    def resolve_dim(self, dim: int | None) -> int:
        """Return ``dim``, or the default dimension for None.

        Raises:
            UnknownDimError: If the model has no head for it.
        """
        return self._resolve_dims(dim)[0]

    @property
    def name(self) -> str:
        """Name or folder that the model was loaded from."""
        return self.source.name if self.source else str(self.backbone.config.name_or_path)

    @property
    def reference(self) -> str:
        """Name or absolute path with which :meth:`from_pretrained` loads the model from any working directory."""
        if self.source is None or self.source.is_hub or shipped_model(self.source.name):
            return self.name
        return str(self.source.folder)

    @property
    def revision(self) -> str | None:
        """Hub commit, or revision of a bundled model; None for local folders."""
        return self.source.revision if self.source else None

    def loading_options(self) -> dict[str, Any]:
        """Return the options with which :meth:`from_pretrained` loads this model again, on any device."""
        skiplist = self.skiplist
        return {
            "dims": self.dims if self.heads is not None else None,
            "revision": self.revision,
            "dtype": str(next(self.parameters()).dtype).removeprefix("torch."),
            "document_length": self.document_length,
            "skiplist": skiplist if skiplist != "custom" else "default",
            "tokens_per_batch": self._tokens_per_batch,
        }

    def head_fingerprint(self, dim: int) -> str:
        """Return a hash of the weights that produce vectors of ``dim``, independent of the other heads loaded.

        See :mod:`jcv2_plugin.encoder.fingerprint`.
        """
        modules = [module for module in self if not isinstance(module, MatryoshkaHeads)]
        heads = self.heads
        return weights_fingerprint(modules + ([heads.linears[str(dim)]] if heads is not None else []))

    # Tokenisation and batching

    @property
    def document_length(self) -> int:
        """Window for documents in tokens, markers included."""
        return int(self.backbone.document_length or self.max_document_length)

    @document_length.setter
    def document_length(self, value: int) -> None:
        with self.tokenizer_lock:
            shortest = len(self.tokenizer(self.prompts.get("document") or "")["input_ids"]) + 1
        try:
            length = check_integer(value, "document_length")
        except InvalidOptionError:
            length = 0
        if not shortest <= length <= self.max_document_length:
            raise InvalidOptionError(
                f"document_length must be between {shortest} and {self.max_document_length} for this model, "
                f"got {value!r:.60}."
            )
        self.backbone.document_length = length
        self.forget_derived()

    @property
    def max_document_length(self) -> int:
        """Largest window the backbone supports: 8,190 tokens for jina-colbert-v2 (8,194 positions minus 4)."""
        config = self.backbone.config
        if config.model_type == "jina_embeddings_v3":
            return int(config.max_position_embeddings) - 4
        return int(self.max_seq_length or config.max_position_embeddings)

    @property
    def content_length(self) -> int:
        """Text tokens that fit in a document window next to the marker and special tokens."""
        return self.window_splitter().capacity

    @property
    def query_length(self) -> int | None:
        """Fixed number of vectors per query; None if queries are not padded with [MASK]."""
        expansion = self.backbone.query_expansion
        return expansion["length"] if expansion is not None else None

    @property
    def skiplist(self) -> Skiplist | Literal["custom"] | None:
        """Skip list: which document tokens are not scored."""
        mask = self.scoring_mask
        if mask is None or not mask.skiplist_words:
            return None
        ids = self.skiplist_ids
        for kind in SKIPLISTS:
            if ids == frozenset(self.tokenizer.convert_tokens_to_ids(skiplist_words(self.tokenizer, kind))):
                return kind
        return "custom"

    @skiplist.setter
    def skiplist(self, kind: Skiplist | None) -> None:
        mask = self.scoring_mask
        if mask is None:
            raise ModelLayoutError(f"{self.name!r} has no MultiVectorMask module, so no skip list can be set.")
        mask.skiplist_words = skiplist_words(self.tokenizer, kind)
        mask.resolve_with_tokenizer(self.tokenizer)

    @property
    def skiplist_ids(self) -> frozenset[int]:
        """Token ids on the skip list."""
        mask, tokenizer = self.scoring_mask, self.tokenizer
        words = mask.skiplist_words if mask is not None else []
        ids = zip(words, tokenizer.convert_tokens_to_ids(words), strict=True)
        # As the module does: a word that the vocabulary lacks must not skip every unknown word.
        return frozenset(
            number for word, number in ids if number != tokenizer.unk_token_id or word == tokenizer.unk_token
        )

    @property
    def tokens_per_batch(self) -> int:
        """Default number of padded tokens per batch."""
        return self._tokens_per_batch or default_tokens_per_batch(self.device.type)

    @tokens_per_batch.setter
    def tokens_per_batch(self, value: int | None) -> None:
        self._tokens_per_batch = None if value is None else check_integer(value, "tokens_per_batch")

    @property
    def plain_tokenizer(self) -> Tokenizer:
        """A cached copy of the tokenizer without truncation and padding. XLM-RoBERTa's takes 300 MB."""
        with self.tokenizer_lock:
            if self._plain_tokenizer is None:
                self._plain_tokenizer = plain_tokenizer(self.tokenizer)
            return self._plain_tokenizer

    def tokenized(self, texts: Iterable[str]) -> TokenizedTexts:
        """Tokenise texts once for everything that needs their tokens: length checks, windows and BM25.

        The result can be passed to :meth:`document_vectors` and :meth:`encode_document` instead of the texts.
        """
        given = as_list(texts, "texts")
        encodings = self.plain_tokenizer.encode_batch_fast(given, add_special_tokens=False)
        return TokenizedTexts(given, [encoding.ids for encoding in encodings])

    def window_splitter(self, prompt: str | None = None) -> WindowSplitter:
        """Return the splitter for documents longer than :attr:`document_length`. No prompt means the model's own."""
        prompt = self.prompts.get("document") if prompt is None else prompt
        with self.tokenizer_lock:
            capacity = content_capacity(self.tokenizer, prompt or "", self.document_length)
            if self._splitter is None or self._splitter.capacity != capacity:
                self._splitter = WindowSplitter(self.plain_tokenizer, capacity)
            return self._splitter

    @property
    def gives_tokens(self) -> bool:
        """Whether it can tell the tokens of texts: always."""
        return True

    def token_counter(self) -> Callable[[str], int]:
        """Return a function that counts a text's tokens, for splitting texts."""
        return TokenCounter(self.plain_tokenizer)

    def check_lengths(self, texts: Sequence[str]) -> None:
        """Raise DocumentTooLongError for the first text that does not fit the window."""
        self.split_documents(self.tokenized(texts), "error")

    def scored_tokens(
        self, text: str, task: Literal["query", "document"], long_documents: LongDocuments = "truncate"
    ) -> list[ScoredToken]:
        """Return the tokens of a text, one for each row of its multivector."""
        return scored_tokens(self, text, task, long_documents)

    def split_documents(
        self, texts: TokenizedTexts, long_documents: LongDocuments, prompt: str | None = None
    ) -> tuple[list[str], list[int]]:
        """Return the windows of documents, and for each window the position of its document. See :meth:`encode`.

        Raises:
            DocumentTooLongError: If a document is too long and ``long_documents`` is ``"error"``.
        """
        if long_documents == "truncate":
            return texts.texts, list(range(len(texts.texts)))
        splitter = self.window_splitter(prompt)
        windows: list[str] = []
        owners: list[int] = []
        for position, (text, tokens) in enumerate(zip(texts.texts, texts.counts, strict=True)):
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

    def preprocess(self, inputs: Any, prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenise texts as sentence-transformers does. Only one thread tokenises at a time."""
        with self.tokenizer_lock:
            return super().preprocess(inputs, prompt=prompt, **kwargs)

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

    # Encoding

    def query_vectors(self, texts: Sequence[str], dim: int) -> list[NDArray[np.float32]]:
        """Encode queries into float32 arrays of shape ``(query tokens, dim)``."""
        return _arrays(self.encode_query(as_list(texts, "texts"), dim=dim, convert_to_numpy=True))

    def document_vectors(
        self,
        texts: Sequence[str] | TokenizedTexts,
        dim: int,
        long_documents: LongDocuments = "truncate",
        pool_factor: float = 1.0,
    ) -> list[NDArray[np.float32]]:
        """Encode documents into float32 arrays of shape ``(document tokens, dim)``; pooling leaves fewer rows."""
        factor = check_pool_factor(pool_factor)
        given = texts if isinstance(texts, TokenizedTexts) else as_list(texts, "texts")
        pooling = HierarchicalTokenPooling(factor) if factor > 1 else None
        return _arrays(
            self.encode_document(
                given, dim=dim, long_documents=long_documents, convert_to_numpy=True, token_pooling=pooling
            )
        )

    def encode_query(  # type: ignore[override]
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """Encode queries. Adds the query prompt (marker) and, if the model uses query expansion, [MASK] tokens.

        Arguments and results are those of :meth:`encode`. Each query has vectors of shape ``(query tokens, dim)``.
        """
        return self._encode_as("query", inputs, prompt_name, prompt, kwargs)

    def encode_document(  # type: ignore[override]
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """Encode documents. Adds the document prompt (marker) and drops vectors of tokens on the skip list.

        Arguments and results are those of :meth:`encode`. Each document has vectors of shape ``(scored tokens, dim)``.
        """
        return self._encode_as("document", inputs, prompt_name, prompt, kwargs)

    def _encode_as(
        self, task: str, inputs: Any, prompt_name: str | None, prompt: str | None, kwargs: dict[str, Any]
    ) -> Any:
        if prompt_name is None and prompt is None and task in self.prompts:
            prompt_name = task
        return self.encode(inputs, prompt_name, prompt, task=task, **kwargs)

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
            inputs: One text, an iterable of texts, or texts tokenised by :meth:`tokenized`.
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
            InvalidOptionError: If ``batch_size`` or ``tokens_per_batch`` is not a positive integer.
            TypeError: If an input is not a string.
            DocumentTooLongError: If a document is too long and ``long_documents`` is ``"error"``.
            ForkedProcessError: If the model was loaded on an accelerator before this process was forked.
        """
        forks.check_device(self)
        if long_documents not in LONG_DOCUMENTS:
            raise InvalidOptionError(f"long_documents must be one of {LONG_DOCUMENTS}, got {long_documents!r}.")
        batch_size = _NO_CAP if batch_size is None else check_integer(batch_size, "batch_size")
        if tokens_per_batch is not None:
            tokens_per_batch = check_integer(tokens_per_batch, "tokens_per_batch")
        texts = _as_texts(inputs)
        several, raw = isinstance(dim, Iterable), kwargs.get("output_value", "") is None
        dims = self._resolve_dims(dim)
        if several and (raw or kwargs.get("token_pooling") is not None):
            raise ValueError("token_pooling and output_value=None take one dim at a time.")
        owners = None
        if kwargs.get("task") == "document" and long_documents != "truncate" and not raw:
            given = inputs if isinstance(inputs, TokenizedTexts) else self.tokenized(texts)
            own = self.prompts.get(prompt_name or self.default_prompt_name or "") or "" if prompt is None else prompt
            texts, owners = self.split_documents(given, long_documents, own)
        options = {
            **kwargs,
            **({"dim": dims} if self.heads is not None else {}),
            "batch_size": batch_size,
            "show_progress_bar": show_progress_bar,
            "tokens_per_batch": tokens_per_batch,
        }
        result: Any = super().encode(texts, prompt_name, prompt, **options)
        if owners is not None:
            result = join_windows(result, owners)
        if not several:
            return result[0] if isinstance(inputs, str) else result
        parts = [MatryoshkaHeads.split(vectors, dims) for vectors in result]
        return parts[0] if isinstance(inputs, str) else {one: [part[one] for part in parts] for one in dims}

    def _resolve_dims(self, dim: int | Iterable[int] | None) -> tuple[int, ...]:
        if (heads := self.heads) is not None:
            return heads.resolve_dims(dim)
        if dim is not None and set(as_dims(dim)) - {*self.dims}:
            raise UnknownDimError(f"{self.name!r} has no head for dim={dim!r}; it has {list(self.dims)}.")
        return self.dims if dim is None else as_dims(dim)

    def forward(self, input: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Run the modules on features. A single short text may take OpenVINO's way through the backbone."""
        if self.query_engine == "openvino" and not (self.training or torch.is_grad_enabled() or self.module_kwargs):
            self.prepare()
            short, backbone = self._short_texts, self.backbone
            if short is not None and short.takes(backbone, input):
                features = {**input, backbone.module_output_name: short.run(input)}
                for module in itertools.islice(self, 1, None):
                    names = getattr(module, "forward_kwargs", ())
                    features = module(features, **{name: kwargs[name] for name in names if name in kwargs})
                return features
        return dict(super().forward(input, **kwargs))

    def train(self, mode: bool = True) -> JinaColbertEncoder:
        """Set the training mode. Afterwards, :attr:`query_engine` is checked against the weights again."""
        super().train(mode)
        short: ShortTexts | None = getattr(self, "_short_texts", None)
        if not mode and short is not None:
            short.check()
        return self

    def get_model_kwargs(self) -> list[str]:
        """Return the keyword arguments that ``encode`` takes in addition to sentence-transformers' own."""
        return [*super().get_model_kwargs(), "tokens_per_batch"]

    def _inference(self, inputs: list[Any], **kwargs: Any) -> list[Any]:
        """Encode a list of texts on one device. Called by ``encode``, in this process or in a worker."""
        budget = kwargs.pop("tokens_per_batch", None)
        if kwargs["output_value"] is None:
            kwargs["batch_size"] = min(kwargs["batch_size"], 32)
            return super()._inference(inputs, **kwargs)
        del kwargs["output_value"]
        device = kwargs.pop("device", None)
        if device is not None and torch.empty(0, device=device).device != self.device:
            self.to(device)
        budget = self.tokens_per_batch if budget is None else budget
        vectors = dict(encode_batches(self, inputs, budget, device=self.device, **kwargs))
        return [vectors[position] for position in range(len(inputs))]


def _as_texts(inputs: Any) -> list[str]:
    if isinstance(inputs, TokenizedTexts):
        return inputs.texts
    given = inputs.tolist() if isinstance(inputs, np.ndarray) else inputs
    texts: list[Any] = [given] if isinstance(given, str) else list(given)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError(f"Texts must be str, got {type(text).__name__}: {text!r:.80}.")
    return texts


def _arrays(arrays: Iterable[NDArray[Any]]) -> list[NDArray[np.float32]]:
    return [np.asarray(array, dtype=np.float32) for array in arrays]
