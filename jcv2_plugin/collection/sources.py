"""Read files as documents: text files are split into passages, JSON Lines are read as they are."""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bs4 import BeautifulSoup
from bs4.builder import ParserRejectedMarkup
from semantic_text_splitter import MarkdownSplitter, TextSplitter

from jcv2_plugin.checks import check_integer
from jcv2_plugin.documents import Document, checked, has_text, is_unicode
from jcv2_plugin.errors import InvalidDocumentError, Jcv2Error
from jcv2_plugin.files import parse_json

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder

TEXT_SUFFIXES = frozenset({".md", ".markdown", ".txt", ".rst", ".py", ".html", ".htm"})
JSONL_SUFFIX = ".jsonl"
STDIN = "-"
STDIN_NAME = "stdin"
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages", "venv"})
DEFAULT_CHUNK_TOKENS = 200
DEFAULT_MAX_MIB = 64
_MIB = 2**20
_SECTION = re.compile(r"<!\[(?!CDATA\[)")
FILE_KEY = "_file"
"""Payload key with the name of the file a document was read from, independent of its metadata."""


class SourceError(Jcv2Error, ValueError):
    """A file to index is missing or unreadable. The message contains the file, line and remedy."""


@dataclass(frozen=True)
class SourceFile:
    """A file to index. ``name`` is its normalised path, and the prefix of its passages' ids."""

    path: Path
    name: str
    is_stdin: bool = False

    @property
    def is_jsonl(self) -> bool:
        """Whether the file contains one document per line rather than a text to split."""
        return self.is_stdin or self.path.suffix.lower() == JSONL_SUFFIX

    @property
    def title(self) -> str:
        """Name of the file in messages."""
        return self.name if self.is_stdin else str(self.path)

    def size(self) -> int:
        """Return the file size in bytes, or 0 if unknown."""
        try:
            return 0 if self.is_stdin else self.path.stat().st_size
        except OSError:
            return 0


@dataclass
class NotEntered:
    """Folders below the given ones whose files are unknown, by their real path.

    They could not be read (``unread``, with the error), are links (``linked``, with its path), which are not followed,
    or are hidden or environments (``skipped``). The files of those ``entered`` are known.
    """

    unread: dict[str, OSError] = field(default_factory=dict)
    linked: dict[str, Path] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    entered: set[str] = field(default_factory=set)

    def reasons(self) -> list[str]:
        """Say which folders were not entered and why, one sentence each. Those skipped by rule are left out."""
        unread = [
            f"The folder {str(error.filename)!r} cannot be read ({error.strerror}). Make it readable."
            for error in self.unread.values()
        ]
        linked = [
            f"{str(link)!r} is a link to a folder, which is not entered. Give {real!r} as a path too to index it."
            for real, link in sorted(self.linked.items())
            if real not in self.entered
        ]
        return unread + linked

    def holds(self, file: str) -> bool:
        """Return whether the file of this path is, or was, below a folder that was not entered."""
        parents = {str(one) for path in (os.path.abspath(file), os.path.realpath(file)) for one in Path(path).parents}
        return not parents.isdisjoint((self.unread.keys() | self.linked.keys() | self.skipped) - self.entered)


def find_files(
    paths: Sequence[str | os.PathLike[str]], *, allow_empty: bool = False, not_entered: NotEntered | None = None
) -> list[SourceFile]:
    """Find the files to index in the given files and folders, in a stable order. The path ``-`` means standard input.

    Skips hidden files and folders, and environments such as ``venv`` and ``node_modules``. Links to folders below the
    given ones are not followed. ``not_entered`` is filled with the folders that were not entered; without it, one that
    cannot be read is an error. Raises SourceError for that, a path that does not exist, a file type that is not
    supported, or a folder without files, unless ``allow_empty``.
    """
    left_out = NotEntered() if not_entered is None else not_entered
    files: dict[str, SourceFile] = {}
    for given in paths:
        path = Path(given)
        if os.fspath(given) == STDIN:
            files.setdefault(STDIN_NAME, SourceFile(path, STDIN_NAME, is_stdin=True))
            continue
        try:
            kind = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            raise SourceError(f"There is no file or folder {str(path)!r}. Check the path.") from None
        except (OSError, ValueError) as error:  # ValueError: a path with NUL
            raise SourceError(f"{str(path)!r} cannot be read ({error}). Make it readable, or leave it out.") from error
        if stat.S_ISDIR(kind):
            found = [file for file in sorted(_walk(path, left_out)) if _is_wanted(file)]
            if (unread := left_out.unread.get(os.path.realpath(path))) is not None:
                raise SourceError(f"The folder {str(path)!r} cannot be read ({unread.strerror}). Make it readable.")
            if not found and not allow_empty:
                raise SourceError(f"{path} has no files to index ({', '.join(sorted(TEXT_SUFFIXES))}, {JSONL_SUFFIX}).")
        else:
            if path.suffix.lower() not in TEXT_SUFFIXES | {JSONL_SUFFIX}:
                raise SourceError(
                    f"{path}: files of kind {path.suffix!r} are not read. Known are "
                    f"{', '.join(sorted(TEXT_SUFFIXES))} and {JSONL_SUFFIX}."
                )
            found = [path]
        for file in found:
            name = source_name(file)
            files.setdefault(name, SourceFile(file, name))
    if not_entered is None and left_out.unread:
        raise SourceError(left_out.reasons()[0])
    return list(files.values())


def source_name(path: str | os.PathLike[str]) -> str:
    """Return a file's name in ids and metadata: its path from the current folder, or its full path if it is elsewhere.

    Links are followed, so a file has one name, whichever path it is given by.
    """
    given = Path(path)
    real = Path(os.path.realpath(given))
    if real.suffix != given.suffix:  # such as the files of Hugging Face's cache, which are named by a hash
        real = Path(os.path.realpath(given.parent), given.name)
    here = Path(os.path.realpath(os.curdir))
    return (real.relative_to(here) if real.is_relative_to(here) else real).as_posix()


def _walk(folder: Path, left_out: NotEntered) -> Iterator[Path]:
    def note(error: OSError) -> None:
        left_out.unread[os.path.realpath(error.filename)] = error

    for root, folders, names in os.walk(folder, onerror=note):
        left_out.entered.add(os.path.realpath(root))
        wanted = sorted(name for name in folders if not name.startswith(".") and name not in _SKIPPED_FOLDERS)
        left_out.skipped.update(os.path.realpath(os.path.join(root, name)) for name in set(folders) - set(wanted))
        links = {name: path for name in wanted if os.path.islink(path := os.path.join(root, name))}
        left_out.linked.update((os.path.realpath(path), Path(path)) for path in links.values())
        folders[:] = [name for name in wanted if name not in links]
        yield from (Path(root) / name for name in names if not name.startswith("."))


def _is_wanted(file: Path) -> bool:
    if file.suffix.lower() == JSONL_SUFFIX:
        # In a BEIR folder, only the corpus contains documents.
        return not (file.name == "queries.jsonl" and file.with_name("corpus.jsonl").exists())
    return file.suffix.lower() in TEXT_SUFFIXES


class PassageReader:
    """Read files as documents. Texts are split at the best boundary that keeps passages within a maximum size.

    Args:
        encoder: Encoder whose tokens are counted, or estimated if it is on a server.
        chunk_tokens: Maximum size of a passage in tokens, at most the model's window.
        max_mib: Maximum size of a text file, and of a JSON line, in MiB. No more than this is read at once.
    """

    def __init__(
        self, encoder: Encoder, chunk_tokens: int = DEFAULT_CHUNK_TOKENS, max_mib: int = DEFAULT_MAX_MIB
    ) -> None:
        chunk_tokens = check_integer(chunk_tokens, "chunk_tokens", SourceError)
        max_mib = check_integer(max_mib, "max_mib", SourceError)
        window = encoder.content_length
        if chunk_tokens > window:
            raise SourceError(
                f"Passages of {chunk_tokens} tokens do not fit the model's window of {window}. Take fewer, or load "
                "the model with a larger document_length."
            )
        self._count = encoder.token_counter()
        self._chunk_tokens = chunk_tokens
        self._max_mib = max_mib
        self.bytes_read = 0
        self.blank: list[str] = []
        self._make_splitters()

    def _make_splitters(self) -> None:
        self._markdown = MarkdownSplitter.from_callback(self._count, self._chunk_tokens)
        self._plain = TextSplitter.from_callback(self._count, self._chunk_tokens)

    def __getstate__(self) -> dict[str, Any]:
        # A reader travels to other machines with its tokenizer, and without a model. Splitters cannot be pickled.
        return {name: value for name, value in vars(self).items() if name not in ("_markdown", "_plain")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_splitters()

    def read(self, file: SourceFile) -> Iterator[Document]:
        """Read the documents of a file. A text is read immediately, JSON Lines are read lazily.

        Raises SourceError for a file that cannot be read, is too large or not UTF-8 (immediately), or a JSON line that
        is too long or invalid (when it is reached).
        """
        if not is_unicode(file.name):
            raise SourceError(f"{file.name!r} is not UTF-8, so it cannot be part of an id. Rename it.")
        if not file.is_stdin and file.path.exists() and not file.path.is_file():
            raise SourceError(f"{str(file.path)!r} is not a regular file.")
        if file.is_jsonl:
            # Opened here, so that a file that cannot be read is known before anything is stored.
            opened = nullcontext(sys.stdin.buffer) if file.is_stdin else _opened(file.path)
            return self._with_text(_rows(self._lines(file, opened), file), file)
        self.bytes_read += file.size()
        return self._passages(file, _text_of(file, self._max_mib))

    def _lines(self, file: SourceFile, opened: AbstractContextManager[IO[bytes]]) -> Iterator[bytes]:
        with opened as stream:
            number = 0
            while line := stream.readline(self._max_mib * _MIB + 1):
                number += 1
                if len(line) > self._max_mib * _MIB:
                    raise SourceError(
                        f"{file.title}:{number}: the line is longer than {self._max_mib} MiB. Write one document per "
                        "line, or raise the limit (--max-mib)."
                    )
                self.bytes_read += len(line)
                yield line

    def _with_text(self, rows: Iterable[tuple[int, Document]], file: SourceFile) -> Iterator[Document]:
        for number, document in rows:
            if not has_text(document.text):
                self.blank.append(str(document.id))
                continue
            try:
                yield checked(document, f"{file.title}:{number}")
            except InvalidDocumentError as error:
                raise SourceError(str(error)) from error

    def _passages(self, file: SourceFile, text: str) -> Iterator[Document]:
        splitter = self._markdown if file.path.suffix.lower() in (".md", ".markdown") else self._plain
        seen: Counter[str] = Counter()
        for chunk in splitter.chunks(text):
            if not has_text(chunk):
                continue
            # The id depends on content, not position, so that an edit does not change the ids of later passages.
            digest = hashlib.blake2b(chunk.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
            seen[digest] += 1
            repeat = f"-{seen[digest]}" if seen[digest] > 1 else ""
            yield Document(
                text=chunk,
                id=f"{file.name}#{digest}{repeat}",
                metadata={"source": file.name},
                payload={FILE_KEY: file.name},
            )


def _text_of(file: SourceFile, max_mib: int) -> str:
    try:
        with file.path.open("rb") as stream:
            content = stream.read(max_mib * _MIB + 1)
        if len(content) > max_mib * _MIB:
            raise SourceError(f"{file.path} is larger than {max_mib} MiB. Split it, or raise the limit (--max-mib).")
        text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{file.path} cannot be read as UTF-8 text ({error}). Convert or leave it out.") from error
    if file.path.suffix.lower() not in (".html", ".htm"):
        return text
    try:
        return html_text(text)
    except ParserRejectedMarkup as error:
        raise SourceError(f"{file.path} cannot be read as HTML ({error}). Convert or leave it out.") from error


def html_text(page: str) -> str:
    """Extract the text of an HTML page, without scripts and styles."""
    soup = BeautifulSoup(_with_ends(page), "html.parser")
    for element in soup(["script", "style", "template", "noscript"]):
        element.decompose()
    lines = (line.strip() for line in soup.get_text("\n").splitlines())
    return "\n".join(line for line in lines if line)


def _with_ends(page: str) -> str:
    """Escape the beginnings of comments and tags that do not end.

    For each of them, Python's parser looks for an end in all that follows, which takes hours for a few megabytes. It
    also knows no sections but CDATA and some of Word's; in HTML, these are comments.
    """
    page = _SECTION.sub("<!", page)
    for begin, end, escaped in (("<!--", "-->", "&lt;!--"), ("<![CDATA[", "]]>", "<!"), ("<", ">", "&lt;")):
        ended, last, rest = page.rpartition(end)
        page = ended + last + rest.replace(begin, escaped)
    return page


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error}). Make it readable, or leave it out.") from error


def _rows(lines: Iterable[bytes], file: SourceFile) -> Iterator[tuple[int, Document]]:
    """Yield the documents of JSON Lines in BEIR format or as ``{id, text, metadata}``, with their line numbers."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            document = _row_document(parse_json(line.decode("utf-8-sig")), file.name)
        except (ValueError, KeyError, TypeError) as error:
            raise SourceError(
                f"{file.title}:{number}: expected {{'_id', 'title', 'text'}} or {{'id', 'text', 'metadata'}} "
                f"({type(error).__name__}: {error})."
            ) from error
        yield number, document


def _row_document(row: Any, file: str) -> Document:
    if not isinstance(row, dict):
        raise TypeError(f"the line is {type(row).__name__}, not an object")
    metadata = row.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise TypeError(f"'metadata' is {type(metadata).__name__}, not an object")
    text = row["text"]
    if not isinstance(text, str):
        raise TypeError(f"'text' is {type(text).__name__}, not a string")
    own_id = row["_id"] if "_id" in row else row["id"]
    if not isinstance(own_id, (str, int)) or isinstance(own_id, bool) or own_id == "":
        raise TypeError(f"the id is {own_id!r}")
    if "_id" in row:
        title = row.get("title") or ""
        if title:
            metadata = {**metadata, "title": title}
        text = f"{title} {text}".strip()
    return Document(text, str(own_id), {"source": file, **metadata}, {FILE_KEY: file})
