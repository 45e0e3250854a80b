"""Pack texts into token sequences of equal length, and mask whole words in them.

Which tokens of a row are masked depends only on the seed, the epoch and the row, so a resumed run masks the same tokens
as an uninterrupted one. transformers' collator for whole words does not: it draws from one generator. It also replaces
all chosen tokens by the mask token, and finds words by gaps between tokens: a Japanese, Chinese or Thai sentence
of 16 to 18 tokens (XLM-R's) is then 2 or 3 words, and a whole text is one where tokens include the space before them.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.documents import has_text
from jcv2_trainer.data.datasets_io import cached_rows
from jcv2_trainer.data.lines import DataError, read_lines
from jcv2_trainer.data.records import data_files, read_entries, sound_record

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

IGNORED = -100
"""Label of tokens that are not predicted, as in torch's cross-entropy."""

_FORMATS = "Give text files with a document per line (.txt), or JSON lines or Parquet with a field 'text'"
_TEXT_FILE = re.compile(r"\.txt(\.(gz|xz|bz2|zst))?$", re.IGNORECASE)
# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_BATCH_TEXTS, _BATCH_CHARACTERS = 256, 2**20


def read_texts(path: Path) -> Iterator[str]:
    """Yield the documents of a file, without blank ones.

    A ``.txt`` file (also .gz, .xz, .bz2, .zst) has one per line, other formats have them in the field ``text``.

    Raises:
        DataError: The file cannot be read, or a record has no text.
    """
    if _TEXT_FILE.search(path.name):
        for number, line in read_lines(path):
            try:
                document = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
            if has_text(document):
                yield document.strip()
        return
    for entry in read_entries(path):
        text = sound_record(entry).get("text")
        if not isinstance(text, str):
            raise DataError(f"{entry.position}: 'text' must be a text, got {text!r:.60}. {_FORMATS}.")
        if has_text(text):
            yield text.strip()


def word_starts(text: str, word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Return which tokens of a text begin a word, from their pre-tokens and their places in characters.

    A word is a pre-token of the tokenizer. If pre-tokens contain spaces (SentencePiece without a split), a word also
    begins at each space. In scripts without spaces, a pre-token is a whole clause, so each token is a word.
    """
    clauses = _UNSPACED.search(text) is not None
    starts = []
    last_word: int | None = None
    last_start = last_end = -1
    for word, (start, end) in zip(word_ids, offsets, strict=True):
        begins = word is None or word != last_word or text[start : start + 1].isspace()
        if clauses and not begins:
            # A bare "▁" belongs to the token after it; it covers a space, or the same characters.
            bare = start == last_start or text[last_start:last_end].isspace()
            begins = not bare and any(map(_UNSPACED.match, (text[start : start + 1], text[last_end - 1 : last_end])))
        starts.append(begins)
        last_word, last_start, last_end = word, start, end
    return starts


def text_files(texts: Iterable[Path]) -> list[list[Any]]:
    """Return the name and the size in bytes of each file to read. One that does not exist is a ``DataError``."""
    files = []
    for path in texts:
        if not path.exists():
            raise DataError(f"{path} does not exist. {_FORMATS}.")
        files += [[file.name, file.stat().st_size if file.is_file() else 0] for file in data_files(path)]
    return files


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest that is the same for tokenizers with the same settings and vocabulary."""
    whole = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(whole.encode()).hexdigest()


def pack(
    texts: Sequence[Path], tokenizer: Any, length: int, whole_word: bool, cache: Path
) -> tuple[Dataset, dict[str, int]]:
    """Pack documents one after another into rows, each between the model's first and last special token.

    Documents are separated by the last special token and may continue in the next row. Nothing is padded, and only the
    tokens of the last, incomplete row are dropped. The rows are cached
    (:func:`~jcv2_trainer.data.datasets_io.cached_rows`).

    Returns:
        A dataset with the column ``values``, lists of ``length`` numbers: twice the token id, plus 1 if the token
        begins a word. And the number of "documents" and of their "tokens".

    Raises:
        DataError: A file cannot be read, or the texts do not fill two rows.
    """
    options = {"tokenizer": tokenizer_digest(tokenizer), "length": length, "whole_word": whole_word}
    return cached_rows(
        texts,
        cache,
        options,
        {"values": "tokens"},
        lambda counts: _packed(texts, tokenizer, length, whole_word, counts),
    )


def _packed(
    texts: Sequence[Path], tokenizer: Any, length: int, whole_word: bool, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    first, last = boundary_ids(tokenizer)
    room = length - 2
    rows = 0
    pending: list[int] = []
    for batch in _batches(text for path in texts for text in read_texts(path)):
        for values in _encode(batch, tokenizer, whole_word):
            counts["tokens"] += len(values)
            pending += [2 * last, *values] if pending else values
            full = len(pending) // room * room
            for start in range(0, full, room):
                rows += 1
                # The first token may be the rest of a word that began in the row before.
                yield {"values": [2 * first, pending[start] | 1, *pending[start + 1 : start + room], 2 * last]}
            del pending[:full]
        counts["documents"] += len(batch)
    names = ", ".join(map(str, texts))
    if not counts["tokens"]:
        raise DataError(f"There is no text in {names}. {_FORMATS}.")
    if rows < 2:
        raise DataError(
            f"{names}: {counts['tokens']:,} tokens do not fill two sequences of {length} (one is held out). "
            "Give more text, or a smaller --sequence-length."
        )


def boundary_ids(tokenizer: Any) -> tuple[int, int]:
    """Return the ids of the special tokens around a text: ``<s>`` and ``</s>``, or ``[CLS]`` and ``[SEP]``."""
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise DataError(
            "The tokenizer has no token for the beginning or the end of a text (cls or bos, sep or eos). "
            "Give a model whose tokenizer has them."
        )
    return int(first), int(last)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_TEXTS or sum(map(len, batch)) >= _BATCH_CHARACTERS:
            yield batch
            batch = []
    if batch:
        yield batch


def _encode(texts: list[str], tokenizer: Any, whole_word: bool) -> Iterator[list[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=whole_word,
        verbose=False,  # no warning about texts longer than the model's limit
    )
    for index, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
        starts = [True] * len(ids)
        if whole_word:
            starts = word_starts(text, encoded.word_ids(index), encoded["offset_mapping"][index])
        yield [2 * one + start for one, start in zip(ids, starts, strict=True)]


class Rows:
    """Some rows of a packed dataset, as a dataset for a data loader."""

    def __init__(self, packed: Dataset, chosen: NDArray[np.int64], seed: int) -> None:
        self._packed = packed.with_format("numpy")
        self._chosen = chosen
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self._chosen[index])
        return {"values": self._packed[row]["values"], "draw": (self._seed, self.epoch, row)}


class WordMasker:
    """Collate rows into a batch, with a share of the words to predict.

    As in BERT, 80% of their tokens become the mask token, 10% random tokens, and 10% stay.
    """

    def __init__(self, tokenizer: Any, share: float) -> None:
        self._share = share
        self._mask = int(tokenizer.mask_token_id)
        self._special = np.zeros(max(len(tokenizer), max(tokenizer.all_special_ids) + 1), bool)
        self._special[tokenizer.all_special_ids] = True
        self._ordinary = np.flatnonzero(~self._special)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return tensors ``input_ids`` and ``labels`` of shape ``(rows, length)``."""
        import torch

        masked = [self.mask(row["values"], np.random.default_rng(row["draw"])) for row in rows]
        ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*masked, strict=True))
        return {"input_ids": ids, "labels": labels}

    def mask(self, values: NDArray[Any], random: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the masked ids and the labels of a row. At least one word is masked, unless all tokens are special."""
        ids = (values >> 1).astype(np.int64)
        words = np.cumsum(values & 1)
        free = ~self._special[ids]
        chosen = (random.random(int(words[-1]) + 1) < self._share)[words] & free
        if not chosen.any() and free.any():
            chosen = (words == words[random.choice(np.flatnonzero(free))]) & free
        labels = np.where(chosen, ids, IGNORED)
        fate = random.random(len(ids))
        others = self._ordinary[random.integers(len(self._ordinary), size=len(ids))]
        ids[chosen & (fate < 0.8)] = self._mask
        swapped = chosen & (fate >= 0.8) & (fate < 0.9)
        ids[swapped] = others[swapped]
        return ids, labels
