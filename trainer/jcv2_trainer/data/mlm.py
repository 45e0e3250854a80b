"""Pack texts into token sequences of equal length, and mask whole words in them.

Tokens are packed into a memory-mapped file, so memory does not grow with the texts. Which tokens of a row are masked
depends only on the seed, the epoch and the row, so a resumed run masks the same tokens as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jcv2_trainer.data.lines import DataError, read_lines
from jcv2_trainer.data.records import data_files, read_entries, sound_record

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of tokens that are not predicted, as in torch's cross-entropy."""

_FORMATS = "Give text files with a document a line (.txt), or JSON lines or Parquet with a field 'text'"
_TEXT_FILE = re.compile(r"\.txt(\.(gz|xz|bz2|zst))?$", re.IGNORECASE)
# Scripts without spaces between words: Thai, Lao, Tibetan, Myanmar, Khmer, kana, Han.
_UNSPACED = re.compile("[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u31f0-\u9fff\uf900-\ufaff\uff66-\uff9f]")
_UNSPACED_WIDE = re.compile("[\U00020000-\U0003ffff]")
_BATCH_TEXTS, _BATCH_CHARACTERS = 256, 2**20
_TOKENS, _ABOUT = "tokens.bin", "tokens.json"


def read_texts(path: Path) -> Iterator[str]:
    """Yield the documents of a file, without blank ones.

    A file named ``.txt`` (plain, .gz, .xz, .bz2, .zst) has one document per line. Other files are read by
    :mod:`jcv2_trainer.data.records`, with the document in the field ``text`` of each record.

    Raises:
        DataError: The file cannot be read, or a record has no text. The message names the file and line.
    """
    if _TEXT_FILE.search(path.name):
        if not path.is_file():
            raise DataError(f"{path} does not exist or is no file. {_FORMATS}.")
        for number, line in read_lines(path):
            try:
                yield line.decode("utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{path}:{number}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
        return
    for entry in read_entries(path):
        text = sound_record(entry).get("text")
        if not isinstance(text, str):
            raise DataError(f"{entry.position}: 'text' must be a text, got {text!r:.60}. {_FORMATS}.")
        if text := text.strip():
            yield text


def word_starts(text: str, word_ids: Sequence[int | None], offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Return which tokens of a text begin a word.

    A word is a pre-token of the tokenizer. If pre-tokens contain spaces (SentencePiece without a split), a word also
    begins at each space. In scripts without spaces, a pre-token is a whole clause, so each token is a word.

    Args:
        text: The text that was tokenised.
        word_ids: The pre-token of each token, from a fast tokenizer.
        offsets: Start and end of each token in the text, in characters.
    """
    clauses = _UNSPACED.search(text) is not None or _UNSPACED_WIDE.search(text) is not None
    starts = []
    last_word: int | None = None
    last_start = last_end = -1
    for word, (start, end) in zip(word_ids, offsets, strict=True):
        begins = word is None or word != last_word or text[start : start + 1].isspace()
        if clauses and not begins:
            # A bare "▁" belongs to the token after it; it covers a space, or the same characters.
            bare = start == last_start or text[last_start:last_end].isspace()
            begins = not bare and (_unspaced(text[start : start + 1]) or _unspaced(text[last_end - 1 : last_end]))
        starts.append(begins)
        last_word, last_start, last_end = word, start, end
    return starts


def _unspaced(character: str) -> bool:
    return _UNSPACED.match(character) is not None or _UNSPACED_WIDE.match(character) is not None


@dataclass(frozen=True)
class About:
    """What a packed file was made from, and its size.

    Attributes:
        files: Name and size in bytes of each source file.
        tokenizer: A digest of the tokenizer.
        length: Tokens per row.
        whole_word: Whether words of several tokens are marked, for whole-word masking.
        rows: Number of rows.
        documents: Number of documents read.
        tokens: Number of tokens in the documents, including those of the last, incomplete row, which is dropped.
    """

    files: list[list[Any]]
    tokenizer: str
    length: int
    whole_word: bool
    rows: int = 0
    documents: int = 0
    tokens: int = 0

    def same_source(self, other: About) -> bool:
        """Return whether both were made from the same files and settings."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("files", "tokenizer", "length", "whole_word")
        )


@dataclass(frozen=True)
class Packed:
    """Rows of tokens in a file.

    Attributes:
        values: Memory-mapped array of shape ``(rows, length)``. Each value is twice the token id, plus 1 if the token
            begins a word.
        about: Source and size of the file.
    """

    values: NDArray[np.uint32]
    about: About


def describe(texts: Sequence[Path], tokenizer: Any, length: int, whole_word: bool) -> About:
    """Describe the file that packing these texts would produce.

    Raises:
        DataError: A file is missing.
    """
    files = []
    for path in texts:
        for file in [path] if _TEXT_FILE.search(path.name) else data_files(path):
            if not file.exists():
                raise DataError(f"{file} does not exist. {_FORMATS}.")
            files.append([file.name, file.stat().st_size if file.is_file() else 0])
    backend = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(sorted(tokenizer.get_vocab().items()))
    return About(files, hashlib.sha256(backend.encode()).hexdigest(), length, whole_word)


def load_packed(folder: Path) -> Packed | None:
    """Load the output of :func:`pack`. Return None if it is incomplete."""
    try:
        about = About(**json.loads((folder / _ABOUT).read_text(encoding="utf-8")))
        return Packed(np.memmap(folder / _TOKENS, np.uint32, "r", shape=(about.rows, about.length)), about)
    except (OSError, ValueError, TypeError):
        return None


def pack(
    texts: Sequence[Path],
    tokenizer: Any,
    about: About,
    folder: Path,
    progress: Callable[[int], object] | None = None,
) -> Packed:
    """Write documents one after another into rows, each between the model's first and last special token.

    Documents are separated by the last special token and may continue in the next row. Nothing is padded, and only the
    tokens of the last, incomplete row are dropped.

    Args:
        texts: Files, see :func:`read_texts`.
        tokenizer: A transformers tokenizer. Must be a fast one for whole words.
        about: Result of :func:`describe`.
        folder: Output folder. Existing content is replaced.
        progress: Called with the number of documents in each batch that is done.

    Raises:
        DataError: A file cannot be read, or the texts do not fill two rows.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    first, last = boundary_ids(tokenizer)
    room = about.length - 2
    rows = documents = tokens = 0
    pending = array("I")
    with (folder / _TOKENS).open("wb") as file:
        for batch in _batches(text for path in texts for text in read_texts(path)):
            for values in _encode(batch, tokenizer, about.whole_word):
                tokens += len(values)
                if pending:
                    pending.append(2 * last)
                pending.extend(values)
                start = 0
                while len(pending) - start >= room:
                    row = array("I", [2 * first, *pending[start : start + room], 2 * last])
                    row[1] |= 1  # the rest of a word that began in the row before
                    row.tofile(file)
                    start += room
                    rows += 1
                pending = pending[start:]
            documents += len(batch)
            if progress is not None:
                progress(len(batch))
    names = ", ".join(str(path) for path in texts)
    if not tokens:
        raise DataError(f"There is no text in {names}. {_FORMATS}.")
    if rows < 2:
        raise DataError(
            f"{names}: {tokens:,} tokens do not fill two sequences of {about.length} (one is held out). "
            "Give more text, or a smaller --sequence-length."
        )
    about = About(about.files, about.tokenizer, about.length, about.whole_word, rows, documents, tokens)
    staging = folder / f"{_ABOUT}.part"
    staging.write_text(json.dumps(asdict(about)), encoding="utf-8")
    staging.rename(folder / _ABOUT)
    return Packed(np.memmap(folder / _TOKENS, np.uint32, "r", shape=(rows, about.length)), about)


def boundary_ids(tokenizer: Any) -> tuple[int, int]:
    """Return the ids of the special tokens around a text: ``<s>`` and ``</s>``, or ``[CLS]`` and ``[SEP]``.

    Raises:
        DataError: The tokenizer lacks one of them.
    """
    first = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    last = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if first is None or last is None:
        raise DataError("The tokenizer has no token for the beginning or the end of a text (cls or bos, sep or eos).")
    return int(first), int(last)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_TEXTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encode(texts: list[str], tokenizer: Any, whole_word: bool) -> Iterator[array[int]]:
    encoded = tokenizer(
        texts,
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=whole_word,
        verbose=False,  # no warning about texts longer than the model's limit
    )
    for index, (text, ids) in enumerate(zip(texts, encoded["input_ids"], strict=True)):
        if whole_word:
            starts = word_starts(text, encoded.word_ids(index), encoded["offset_mapping"][index])
        else:
            starts = [True] * len(ids)
        yield array("I", [2 * one + start for one, start in zip(ids, starts, strict=True)])


class Rows:
    """Some rows of a packed file, as a dataset for a data loader."""

    def __init__(self, packed: Packed, chosen: NDArray[np.int64], seed: int) -> None:
        self._values = packed.values
        self._chosen = chosen
        self._seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = int(self._chosen[index])
        return {"values": self._values[row], "draw": (self._seed, self.epoch, row)}


class WordMasker:
    """Collate rows into a batch, with a share of the words to predict.

    Of the tokens to predict, 80% are replaced with the mask token, 10% with random tokens, and 10% are unchanged,
    as in BERT.
    """

    def __init__(self, tokenizer: Any, share: float) -> None:
        self._share = share
        self._mask = int(tokenizer.mask_token_id)
        size = max(len(tokenizer), max(tokenizer.all_special_ids) + 1)
        self._special = np.zeros(size, bool)
        self._special[tokenizer.all_special_ids] = True
        self._ordinary = np.flatnonzero(~self._special)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return tensors ``input_ids`` and ``labels`` of shape ``(rows, length)``."""
        import torch

        masked = [self.mask(row["values"], np.random.default_rng(row["draw"])) for row in rows]
        return {
            "input_ids": torch.from_numpy(np.stack([ids for ids, _ in masked])),
            "labels": torch.from_numpy(np.stack([labels for _, labels in masked])),
        }

    def mask(
        self, values: NDArray[np.uint32], random: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
