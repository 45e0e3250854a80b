"""Read files as documents: text files in passages, JSON lines as they are."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bs4 import BeautifulSoup
from semantic_text_splitter import MarkdownSplitter, TextSplitter

from jcv2_plugin.documents import Document
from jcv2_plugin.encoder.windows import token_counter
from jcv2_plugin.errors import Jcv2Error

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder

TEXT_SUFFIXES = frozenset({".md", ".markdown", ".txt", ".rst", ".py", ".html", ".htm"})
JSONL_SUFFIX = ".jsonl"
STDIN = "-"
STDIN_NAME = "stdin"
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages", "venv"})
DEFAULT_CHUNK_TOKENS = 200
FILE_KEY = "_file"
"""Payload key with the name of the file a document was read from, whatever its metadata say."""


class SourceError(Jcv2Error, ValueError):
    """A file to index is missing or unreadable; the message names file, line and remedy."""


@dataclass(frozen=True)
class SourceFile:
    """A file to index; ``name`` is its path as the user gave it, and the stem of its documents' ids."""

    path: Path
    name: str
    is_stdin: bool = False

    @property
    def is_jsonl(self) -> bool:
        """Whether it holds a document a line, rather than a text to split."""
        return self.is_stdin or self.path.suffix.lower() == JSONL_SUFFIX

    def size(self) -> int:
        """Its bytes; 0 where that is not to be known."""
        try:
            return 0 if self.is_stdin else self.path.stat().st_size
        except OSError:
            return 0


def find_files(paths: Sequence[str | os.PathLike[str]], *, allow_empty: bool = False) -> list[SourceFile]:
    """The files meant by files and folders, in a stable order. Hidden folders and environments are passed over.

    The path ``-`` means standard input, as JSON lines.

    Raises:
        SourceError: A path does not exist, is of an unknown kind, or (unless ``allow_empty``) a folder has nothing
            to index.
    """
    files: dict[str, SourceFile] = {}
    for given in paths:
        path = Path(given)
        if os.fspath(given) == STDIN:
            files.setdefault(STDIN_NAME, SourceFile(path, STDIN_NAME, is_stdin=True))
            continue
        if path.is_dir():
            found = [file for file in sorted(_walk(path)) if _is_wanted(file)]
            if not found and not allow_empty:
                raise SourceError(f"{path} has no files to index ({', '.join(sorted(TEXT_SUFFIXES))}, {JSONL_SUFFIX}).")
        elif path.is_file():
            if path.suffix.lower() not in TEXT_SUFFIXES | {JSONL_SUFFIX}:
                raise SourceError(
                    f"{path}: files of kind {path.suffix!r} are not read. Known are "
                    f"{', '.join(sorted(TEXT_SUFFIXES))} and {JSONL_SUFFIX}."
                )
            found = [path]
        else:
            raise SourceError(f"There is no file or folder {str(path)!r}. Check the path.")
        for file in found:
            name = source_name(file)
            files.setdefault(name, SourceFile(file, name))
    return list(files.values())


def source_name(path: str | os.PathLike[str]) -> str:
    """How a path is written in ids and metadata: normalised, with forward slashes."""
    return Path(os.path.normpath(path)).as_posix()


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _is_wanted(file: Path) -> bool:
    if file.suffix.lower() == JSONL_SUFFIX:
        # In a BEIR folder only the corpus is documents.
        return not (file.name == "queries.jsonl" and file.with_name("corpus.jsonl").exists())
    return file.suffix.lower() in TEXT_SUFFIXES


class PassageReader:
    """Turn files into documents; texts are split at the best boundary that keeps a passage within a size.

    Args:
        encoder: The model, whose tokens are counted.
        chunk_tokens: Largest size of a passage, in tokens; at most what the model's window holds.

    Attributes:
        bytes_read: Of all files so far, which tells how far a run has got.
    """

    def __init__(self, encoder: JinaColbertEncoder, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> None:
        if chunk_tokens < 1:
            raise SourceError(f"chunk_tokens must be positive, got {chunk_tokens}.")
        window = encoder.content_length
        if chunk_tokens > window:
            raise SourceError(
                f"Passages of {chunk_tokens} tokens do not fit the model's window of {window}. Take fewer, or load "
                "the model with a larger document_length."
            )
        count = token_counter(encoder.plain_tokenizer)
        self._markdown = MarkdownSplitter.from_callback(count, chunk_tokens)
        self._plain = TextSplitter.from_callback(count, chunk_tokens)
        self.bytes_read = 0

    def read(self, file: SourceFile) -> Iterator[Document]:
        """The documents of a file. A text is read at once, JSON lines one by one as documents are asked for.

        Raises:
            SourceError: If it is not UTF-8 (of a text, at once), or a JSON line cannot be read (when it comes).
        """
        if file.is_jsonl:
            return _rows(self._counted(sys.stdin.buffer if file.is_stdin else _lines(file.path)), file)
        self.bytes_read += file.size()
        return self._passages(file, _text_of(file))

    def _counted(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            self.bytes_read += len(line)
            yield line

    def _passages(self, file: SourceFile, text: str) -> Iterator[Document]:
        splitter = self._markdown if file.path.suffix.lower() in (".md", ".markdown") else self._plain
        seen: Counter[str] = Counter()
        for chunk in splitter.chunks(text):
            if not chunk.strip():
                continue
            # Named by content, not by position: an edit leaves the passages after it what they were.
            digest = hashlib.blake2b(chunk.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
            seen[digest] += 1
            repeat = f"-{seen[digest]}" if seen[digest] > 1 else ""
            yield Document(
                text=chunk,
                id=f"{file.name}#{digest}{repeat}",
                metadata={"source": file.name},
                payload={FILE_KEY: file.name},
            )


def _text_of(file: SourceFile) -> str:
    try:
        text = file.path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file.path} cannot be read as UTF-8 text ({error}). Convert or leave it out.") from error
    return html_text(text) if file.path.suffix.lower() in (".html", ".htm") else text


def html_text(page: str) -> str:
    """The text of an HTML page, without scripts and styles."""
    soup = BeautifulSoup(page, "html.parser")
    for element in soup(["script", "style", "template", "noscript"]):
        element.decompose()
    lines = (line.strip() for line in soup.get_text("\n").splitlines())
    return "\n".join(line for line in lines if line)


def _lines(path: Path) -> Iterator[bytes]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error}). Make it readable, or leave it out.") from error
    with file:
        yield from file


def _rows(lines: Iterable[bytes], file: SourceFile) -> Iterator[Document]:
    """Documents of JSON lines in BEIR form (``_id``, ``title``, ``text``) or as ``{id, text, metadata}``."""
    where = file.name if file.is_stdin else str(file.path)
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            document = _row_document(json.loads(line.decode("utf-8-sig")), file.name)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SourceError(
                f"{where}:{number}: expected {{'_id', 'title', 'text'}} or {{'id', 'text', 'metadata'}} "
                f"({type(error).__name__}: {error})."
            ) from error
        # BEIR corpora have a few empty documents; they hold nothing to find.
        if document.text.strip():
            yield document


def _row_document(row: Any, file: str) -> Document:
    if not isinstance(row, dict):
        raise TypeError(f"the line is {type(row).__name__}, not an object")
    metadata = dict(row.get("metadata") or {})
    text = row["text"]
    if not isinstance(text, str):
        raise TypeError(f"'text' is {type(text).__name__}, not a string")
    own_id = row["_id"] if "_id" in row else row["id"]
    if not isinstance(own_id, (str, int)) or isinstance(own_id, bool) or own_id == "":
        raise TypeError(f"the id is {own_id!r}")
    if "_id" in row:
        title = row.get("title") or ""
        if title:
            metadata["title"] = title
        text = f"{title} {text}".strip()
    return Document(text, str(own_id), {"source": file, **metadata}, {FILE_KEY: file})
