"""Check a file of pairs or triplets before training on it.

Each row is a JSON object, or a row of a table with these columns::

    {"query": "...", "positive": "...",
     "negatives": ["...", ...],          # optional; a row with negatives is a triplet, without them a pair
     "scores": [12.5, 3.1, ...],         # optional: a teacher's score for the positive, then each negative
     "lang": "en", "source": "..."}      # optional; counted

An optional field that is null counts as absent. ``anchor`` is accepted for ``query``, and ``negative``, ``negative_1``,
``negative_2``, ... for ``negatives``. The supported formats are those of :mod:`jcv2_trainer.data.records`.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jcv2_trainer.data.records import Entry, NoRecord, Unit, normalise, position_of, read_entries

Severity = Literal["error", "warning"]

FIELDS = ("query", "positive", "negatives", "scores", "lang", "source")

KINDS: dict[str, tuple[Severity, str]] = {
    "bad-json": ("error", "Write one JSON object a line, in UTF-8 (for a JSON array: jq -c '.[]')."),
    "not-an-object": ("error", "Write one JSON object a line (for a JSON array: jq -c '.[]')."),
    "missing-field": ("error", "Add the field, or drop the row."),
    "wrong-type": ("error", "Texts are strings, negatives a list of strings, scores a list of numbers."),
    "empty-text": ("error", "Fill in the text, or drop it or the row."),
    "broken-text": ("error", "Write the text anew from its source, in UTF-8."),
    "score-count": ("error", "Give one score for the positive, then one for each negative, or no scores."),
    "non-finite-score": ("error", "Give a finite number, or leave out the row's scores."),
    "positive-as-negative": ("error", "Drop that negative: it would train the model against the positive."),
    "duplicate-negatives": ("error", "Keep one of them."),
    "no-rows": ("error", "Give a file with at least one row."),
    "repeated-query": ("warning", "Fine if both are relevant: neither is then a negative of the query. Else drop one."),
    "mixed-negative-counts": ("warning", "Fine: a row is trained on with as many as it has, up to --negatives."),
    "mixed-pairs-triplets": (
        "warning",
        "Fine for train; pairs ignores negatives, triplets needs them in every row.",
    ),
    "unknown-field": ("warning", f"It is not read. The fields are {', '.join(FIELDS)}."),
}
"""Severity and remedy of each kind of finding."""

_LARGEST_SCORE = 1e30  # finite in float32, with room for a temperature
_MOST_NAMES = 1000  # distinct languages, sources, unknown fields: every row may have a different one
_OTHER = "(other)"


class Fault(NamedTuple):
    """An error in a row, without the row's position."""

    kind: str
    field: str
    message: str


@dataclass(frozen=True)
class Finding:
    """A problem in a line or row.

    Attributes:
        line: Line or row number, from 1.
        field: The field, such as ``"query"`` or ``"negatives[2]"``, as named in the file (``"negative_3"``). Empty for
            the whole line.
        kind: A key of ``KINDS``.
        severity: ``"error"`` or ``"warning"``.
        message: What is wrong, with the value.
        remedy: How to fix it.
        file: The file that contains the line or row: the file checked, or one in the folder checked.
        unit: ``"line"``, or ``"row"`` for tables.
    """

    line: int
    field: str
    kind: str
    severity: Severity
    message: str
    remedy: str
    file: str
    unit: Unit

    @property
    def position(self) -> str:
        """File and line or row, as ``file:3`` or ``file row 3``."""
        return position_of(self.file, self.unit, self.line)


@dataclass(frozen=True)
class CheckReport:
    """Result of :func:`check_file`. A valid row is one without errors.

    Attributes:
        path: The file or folder.
        rows: Number of rows, which are non-blank lines or table rows.
        pairs: Number of valid rows without negatives.
        triplets: Number of valid rows with negatives.
        counts: Number of findings by kind, including those not shown.
        languages: Number of valid rows by ``lang``, most frequent first.
        sources: Number of valid rows by ``source``, most frequent first.
        mean_characters: Mean text length of valid rows in characters, by field.
        negatives_per_row: Number of valid rows by number of negatives.
        findings: Findings to show, by line: the first ones of each kind, errors before warnings.
    """

    path: str
    rows: int
    pairs: int
    triplets: int
    counts: dict[str, int]
    languages: dict[str, int]
    sources: dict[str, int]
    mean_characters: dict[str, float]
    negatives_per_row: dict[int, int]
    findings: list[Finding]

    @property
    def errors(self) -> int:
        """Number of errors, including those not shown."""
        return self._total("error")

    @property
    def warnings(self) -> int:
        """Number of warnings, including those not shown."""
        return self._total("warning")

    def _total(self, severity: Severity) -> int:
        return sum(count for kind, count in self.counts.items() if KINDS[kind][0] == severity)

    @property
    def ok(self) -> bool:
        """Whether there are no errors. Warnings do not count."""
        return self.errors == 0

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {"ok": self.ok, "errors": self.errors, "warnings": self.warnings, **asdict(self)}


def check_file(path: str | Path, max_findings: int = 20) -> CheckReport:
    """Read a training file or folder once and report all problems.

    Args:
        path: JSON lines, plain or compressed (.gz, .xz, .bz2, .zst), Parquet, a folder of such files, or a folder saved
            by ``datasets``.
        max_findings: Maximum number of findings to keep in the report. All are counted.

    Returns:
        The report. Memory is bounded by the longest rows, plus about 150 bytes for each distinct query.

    Raises:
        DataError: The file cannot be read at all.
        ValueError: ``max_findings`` is negative.
    """
    if max_findings < 0:
        raise ValueError(f"max_findings must not be negative, got {max_findings!r}.")
    tally = _Tally(max_findings)
    for entry in read_entries(Path(path)):
        tally.read(entry)
    return tally.report(str(path))


def row_faults(row: dict[str, Any]) -> Iterator[Fault]:
    """Yield the errors of a row with canonical field names, checking each field on its own.

    The fields are listed in the module.
    """
    for field in ("query", "positive"):
        if row.get(field) is None:
            yield Fault("missing-field", field, "null" if field in row else "not in the row")
        else:
            yield from _text_faults(field, row[field])
    for field in ("lang", "source"):
        if row.get(field) is not None:
            yield from _text_faults(field, row[field])
    yield from _negative_faults(row)
    yield from _score_faults(row)


def _text_faults(field: str, value: Any) -> Iterator[Fault]:
    if not isinstance(value, str):
        yield _wrong_type(field, "a text", value)
    elif not value.strip():
        yield Fault("empty-text", field, f"{value!r:.60} has no characters but white space")
    elif _is_broken(value):
        yield Fault("broken-text", field, f"{value!r:.60} has half a surrogate pair, which is no character")


def _is_broken(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _negative_faults(row: dict[str, Any]) -> Iterator[Fault]:
    negatives = row.get("negatives")
    if negatives is None:
        return
    if not isinstance(negatives, list):
        yield _wrong_type("negatives", "a list of texts", negatives)
        return
    positive = row["positive"].strip() if isinstance(row.get("positive"), str) else ""
    seen: dict[str, int] = {}
    for index, negative in enumerate(negatives):
        field = f"negatives[{index}]"
        yield from _text_faults(field, negative)
        text = negative.strip() if isinstance(negative, str) else ""
        if not text:
            continue
        if text == positive:
            yield Fault("positive-as-negative", field, f"the same text as the positive: {text!r:.60}")
        if (first := seen.setdefault(text, index)) != index:
            yield Fault("duplicate-negatives", field, f"the same text as negatives[{first}]: {text!r:.60}")


def _score_faults(row: dict[str, Any]) -> Iterator[Fault]:
    scores = row.get("scores")
    if scores is None:
        return
    if not isinstance(scores, list):
        yield _wrong_type("scores", "a list of numbers", scores)
        return
    negatives = row.get("negatives") or []
    if isinstance(negatives, list) and len(scores) != 1 + len(negatives):
        message = f"{len(scores)} scores for 1 positive and {len(negatives)} negatives"
        yield Fault("score-count", "scores", message)
    for index, score in enumerate(scores):
        field = f"scores[{index}]"
        if isinstance(score, bool) or not isinstance(score, (int, float)):
            yield _wrong_type(field, "a number", score)
        elif not _is_finite(score):
            yield Fault("non-finite-score", field, f"{score!r:.60} is not a finite number")


def _is_finite(score: float) -> bool:
    try:
        return math.isfinite(score) and abs(score) < _LARGEST_SCORE
    except OverflowError:  # an integer too large for a float
        return False


def _wrong_type(field: str, expected: str, value: Any) -> Fault:
    return Fault("wrong-type", field, f"expected {expected}, got {type(value).__name__}: {value!r:.60}")


class _Tally:
    """Counts and findings collected while reading a file."""

    def __init__(self, max_findings: int) -> None:
        self.max_findings = max_findings
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.kept: dict[str, list[Finding]] = {}
        self.named = {"lang": Counter[str](), "source": Counter[str]()}
        self.unknown: set[str] = set()
        self.characters: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self.shapes: Counter[int] = Counter()  # number of negatives -> valid rows
        self.queries = _Queries()

    def read(self, entry: Entry) -> None:
        self.rows += 1
        if isinstance(entry.value, NoRecord):
            self.add(entry, Fault(entry.value.kind, "", entry.value.message))
            return
        row, own_names = normalise(entry.value)
        self._note_unknown(entry, row)
        faults = list(row_faults(row))
        for fault in faults:
            self.add(entry, fault._replace(field=own_names.get(fault.field, fault.field)))
        if not faults:
            self._count(entry, row, own_names.get("query", "query"))

    def add(self, entry: Entry, fault: Fault) -> None:
        severity, remedy = KINDS[fault.kind]
        self.counts[fault.kind] += 1
        kept = self.kept.setdefault(fault.kind, [])
        if len(kept) < self.max_findings:
            file, unit, line, _ = entry
            kept.append(Finding(line, fault.field, fault.kind, severity, fault.message, remedy, str(file), unit))

    def _note_unknown(self, entry: Entry, row: dict[str, Any]) -> None:
        for name in row.keys() - set(FIELDS) - self.unknown:
            if len(self.unknown) < _MOST_NAMES:
                self.unknown.add(name)
                meant = get_close_matches(name[:60], FIELDS, n=1)
                hint = f"; perhaps {meant[0]!r} is meant" if meant else ""
                self.add(entry, Fault("unknown-field", ascii(name)[1:-1][:60], f"first seen here{hint}"))

    def _count(self, entry: Entry, row: dict[str, Any], query_field: str) -> None:
        for field, counter in self.named.items():
            if (name := row.get(field)) is not None:
                counter[name if name in counter or len(counter) < _MOST_NAMES else _OTHER] += 1
        negatives = row.get("negatives") or []
        for field, texts in (("query", [row["query"]]), ("positive", [row["positive"]]), ("negatives", negatives)):
            self.texts[field] += len(texts)
            self.characters[field] += sum(map(len, texts))
        self._note_shape(entry, len(negatives))
        if (first := self.queries.first_with_another(entry, row["query"], row["positive"])) is not None:
            message = f"{first} has the same query with another positive: {row['query']!r:.60}"
            self.add(entry, Fault("repeated-query", query_field, message))

    def _note_shape(self, entry: Entry, negatives: int) -> None:
        """Warn at the first row that differs from earlier rows, once for each of the two differences."""
        before = set(self.shapes)
        self.shapes[negatives] += 1
        if before and (negatives == 0) != (0 in before) and "mixed-pairs-triplets" not in self.counts:
            what = "a triplet after pairs" if negatives else "a pair after triplets"
            self.add(entry, Fault("mixed-pairs-triplets", "negatives", what))
        others = before - {0, negatives}
        if negatives and others and "mixed-negative-counts" not in self.counts:
            message = f"{negatives} negatives, where earlier rows have {min(others)}"
            self.add(entry, Fault("mixed-negative-counts", "negatives", message))

    def report(self, path: str) -> CheckReport:
        if not self.rows:
            self.add(Entry(Path(path), "line", 1, {}), Fault("no-rows", "", "the file is empty or blank"))
        return CheckReport(
            path=path,
            rows=self.rows,
            pairs=self.shapes[0],
            triplets=sum(rows for negatives, rows in self.shapes.items() if negatives),
            counts={kind: self.counts[kind] for kind in KINDS if self.counts[kind]},
            languages=dict(self.named["lang"].most_common()),
            sources=dict(self.named["source"].most_common()),
            mean_characters={name: self.characters[name] / texts for name, texts in self.texts.items() if texts},
            negatives_per_row=dict(sorted(self.shapes.items())),
            findings=self._shown(),
        )

    def _shown(self) -> list[Finding]:
        """Select the first finding of each kind, then the second, ..., so that no frequent kind hides a rare one."""
        ranked = [
            ((one.severity == "warning", rank, one.file, one.line), one)
            for findings in self.kept.values()
            for rank, one in enumerate(findings)
        ]
        ranked.sort(key=lambda pair: pair[0])
        return sorted((one for _, one in ranked[: self.max_findings]), key=lambda one: (one.file, one.line))


class _Queries:
    """The first row and the positive of each query, as 8-byte hashes to avoid holding texts."""

    def __init__(self) -> None:
        self._indices: dict[int, int] = {}
        self._files: list[tuple[Path, Unit]] = []
        self._file_indices = array("L")
        self._lines = array("Q")
        self._positives = array("q")

    def first_with_another(self, entry: Entry, query: str, positive: str) -> str | None:
        """Return where ``query`` first occurred, if it was with another positive. A new query is recorded."""
        index = self._indices.setdefault(text_key(query), len(self._lines))
        if index == len(self._lines):
            if not self._files or self._files[-1][0] != entry.file:
                self._files.append((entry.file, entry.unit))
            self._file_indices.append(len(self._files) - 1)
            self._lines.append(entry.number)
            self._positives.append(text_key(positive))
            return None
        if self._positives[index] == text_key(positive):
            return None
        file, unit = self._files[self._file_indices[index]]
        return f"{unit} {self._lines[index]}" + ("" if file == entry.file else f" of {file.name}")


def text_key(text: str) -> int:
    """Return a signed 64-bit hash of a text. It ignores surrounding whitespace and is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "big", signed=True)
