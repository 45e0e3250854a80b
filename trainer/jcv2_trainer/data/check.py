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
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from dataclasses import fields as fields_of
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass as validated
from pydantic_core import PydanticCustomError

from jcv2_plugin.documents import has_text
from jcv2_trainer.data.records import Entry, Fault, Unit, normalise, position_of, read_entries

Severity = Literal["error", "warning"]


def _sound(text: str) -> str:
    if not has_text(text):
        raise PydanticCustomError("empty-text", "has no visible character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("broken-text", "has half a surrogate pair, which is not a character") from None
    return text


_Text = Annotated[str, Strict(), AfterValidator(_sound)]
# The limits are finite in float32, with room for a temperature.
_Score = Annotated[float, Strict(), Field(gt=-1e30, lt=1e30, allow_inf_nan=False)]


@validated(frozen=True, slots=True)
class Row:
    """A row without errors. Texts are as in the file, not stripped.

    ``negatives`` is empty for a pair, ``scores`` is None or has the teacher's scores for the positive and then for each
    negative, and ``lang`` and ``source`` may be empty.
    """

    query: _Text
    positive: _Text
    negatives: tuple[_Text, ...] = ()
    scores: tuple[_Score, ...] | None = None
    lang: _Text = ""
    source: _Text = ""


FIELDS = tuple(field.name for field in fields_of(Row))

KINDS: dict[str, tuple[Severity, str]] = {
    "bad-json": ("error", "Write one JSON object per line, in UTF-8 (for a JSON array: jq -c '.[]')."),
    "not-an-object": ("error", "Write one JSON object per line (for a JSON array: jq -c '.[]')."),
    "missing-field": ("error", "Add the field, or drop the row."),
    "wrong-type": ("error", "Texts are strings, negatives a list of strings, scores a list of numbers."),
    "empty-text": ("error", "Fill in the text, or drop it or the row."),
    "broken-text": ("error", "Write the text again from its source, in UTF-8."),
    "score-count": ("error", "Give one score for the positive, then one for each negative, or no scores."),
    "non-finite-score": ("error", "Give a finite number, or leave out the row's scores."),
    "positive-as-negative": ("error", "Drop that negative: it would train the model against the positive."),
    "duplicate-negatives": ("error", "Keep one of them."),
    "no-rows": ("error", "Give a file with at least one row."),
    "repeated-query": ("warning", "Fine if both are relevant: neither is then a negative of the query. Else drop one."),
    "mixed-negative-counts": ("warning", "Fine: each row is trained on with all it has, up to --negatives."),
    "mixed-pairs-triplets": ("warning", "Fine for train; pairs ignores negatives, triplets needs them in every row."),
    "unknown-field": ("warning", f"It is not read. The fields are {', '.join(FIELDS)}."),
}
"""Severity and remedy of each kind of finding."""

_MOST_NAMES = 1000  # distinct languages, sources, unknown fields: every row may have a different one


def validate(record: dict[str, Any], own_names: dict[str, str]) -> tuple[Row | None, list[Fault]]:
    """Return a row, or None and all errors, from what :func:`~jcv2_trainer.data.records.normalise` returns."""
    given = {field: value for field in FIELDS if (value := record.get(field)) is not None}
    faults = list(_relation_faults(record))
    try:
        row = Row(**given)
    except ValidationError as error:
        faults = [_fault(record, one) for one in error.errors(include_url=False, include_context=False)] + faults
    if not faults:
        return row, []
    return None, [fault._replace(field=own_names.get(fault.field, fault.field)) for fault in faults]


def _fault(record: dict[str, Any], error: Any) -> Fault:
    name, *index = error["loc"]
    field = name + "".join(f"[{one}]" for one in index)
    value, shown = error["input"], f"{error['input']!r:.60}"
    if error["type"] == "missing":
        return Fault("missing-field", field, "null" if name in record else "not in the row")
    if error["type"] in KINDS:
        return Fault(error["type"], field, f"{shown} {error['msg']}")
    if name == "scores" and index and isinstance(value, (int, float)) and not isinstance(value, bool):
        return Fault("non-finite-score", field, f"{shown} is not a finite number")
    one, several = ("a number", "a list of numbers") if name == "scores" else ("a text", "a list of texts")
    expected = several if name in ("negatives", "scores") and not index else one
    return Fault("wrong-type", field, f"expected {expected}, got {type(value).__name__}: {shown}")


def _relation_faults(record: dict[str, Any]) -> Iterator[Fault]:
    """Yield errors between fields, as far as these have the right types."""
    negatives, scores = record.get("negatives"), record.get("scores")
    if isinstance(negatives, list):
        positive = record.get("positive")
        seen: dict[str, int] = {}
        for index, negative in enumerate(negatives):
            if not isinstance(negative, str) or not (text := negative.strip()):
                continue
            field = f"negatives[{index}]"
            if isinstance(positive, str) and text == positive.strip():
                yield Fault("positive-as-negative", field, f"the same text as the positive: {text!r:.60}")
            if (first := seen.setdefault(text, index)) != index:
                yield Fault("duplicate-negatives", field, f"the same text as negatives[{first}]: {text!r:.60}")
    if isinstance(scores, list) and isinstance(negatives or [], list) and len(scores) != 1 + len(negatives or []):
        message = f"{len(scores)} scores for 1 positive and {len(negatives or [])} negatives"
        yield Fault("score-count", "scores", message)


@dataclass(frozen=True)
class Finding:
    """A problem in a line or row.

    Attributes:
        line: Line or row number, from 1.
        field: The field as named in the file, such as ``"negatives[2]"``. Empty for the whole line.
        kind: A key of ``KINDS``.
        severity: ``"error"`` or ``"warning"``.
        message: What is wrong, with the value.
        remedy: How to fix it.
        file: The file checked, or the one in the folder checked.
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
        rows: Number of non-blank lines or table rows.
        pairs: Number of valid rows without negatives.
        triplets: Number of valid rows with negatives.
        counts: Number of findings by kind, including those not shown.
        languages: Number of valid rows by ``lang``, most frequent first.
        sources: Number of valid rows by ``source``, most frequent first.
        mean_characters: Mean text length of valid rows in characters, by field.
        negatives_per_row: Number of valid rows by number of negatives.
        findings: The first findings of each kind, by line, errors before warnings.
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
        return sum(count for kind, count in self.counts.items() if KINDS[kind][0] == "error")

    @property
    def warnings(self) -> int:
        """Number of warnings, including those not shown."""
        return sum(self.counts.values()) - self.errors

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
        The report. Memory is bounded by the longest rows, plus about 300 bytes for each distinct query.

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


class _Tally:
    """Counts and findings collected while reading a file."""

    def __init__(self, max_findings: int) -> None:
        self.max_findings = max_findings
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.kept: list[tuple[int, Finding]] = []  # with their rank among those of their kind
        self.languages: Counter[str] = Counter()
        self.sources: Counter[str] = Counter()
        self.known = set(FIELDS)  # and fields that were reported
        self.characters: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()
        self.shapes: Counter[int] = Counter()  # number of negatives -> valid rows
        self.files: list[tuple[Path, Unit]] = []
        # Hash of a query -> its first file and line, and the positive's hash. Tuples of numbers only are cheap to keep.
        self.queries: dict[int, tuple[int, int, int]] = {}

    def read(self, entry: Entry) -> None:
        self.rows += 1
        if isinstance(entry.value, Fault):
            self.add(entry, *entry.value)
            return
        record, names = normalise(entry.value)
        row, faults = validate(record, names)
        for name in record.keys() - self.known:
            if len(self.known) < len(FIELDS) + _MOST_NAMES:
                self.known.add(name)
                meant = get_close_matches(name[:60], FIELDS, n=1)
                hint = f"; did you mean {meant[0]!r}?" if meant else ""
                self.add(entry, "unknown-field", ascii(name)[1:-1][:60], f"first seen here{hint}")
        for fault in faults:
            self.add(entry, *fault)
        if row is not None:
            self._count(entry, row, names.get("query", "query"))

    def add(self, entry: Entry, kind: str, field: str, message: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= self.max_findings:
            severity, remedy = KINDS[kind]
            one = Finding(entry.number, field, kind, severity, message, remedy, str(entry.file), entry.unit)
            self.kept.append((self.counts[kind], one))

    def _count(self, entry: Entry, row: Row, query_field: str) -> None:
        for counter, name in ((self.languages, row.lang), (self.sources, row.source)):
            if name:
                counter[name if name in counter or len(counter) < _MOST_NAMES else "(other)"] += 1
        for field, texts in (("query", [row.query]), ("positive", [row.positive]), ("negatives", row.negatives)):
            self.texts[field] += len(texts)
            self.characters[field] += sum(map(len, texts))
        self._note_shape(entry, len(row.negatives))
        if not self.files or self.files[-1][0] is not entry.file:
            self.files.append((entry.file, entry.unit))
        here = (len(self.files) - 1, entry.number, text_key(row.positive))
        index, number, positive = self.queries.setdefault(text_key(row.query), here)
        if positive != here[2]:
            file, unit = self.files[index]
            first = f"{unit} {number}" + ("" if file == entry.file else f" of {file.name}")
            message = f"{first} has the same query with another positive: {row.query!r:.60}"
            self.add(entry, "repeated-query", query_field, message)

    def _note_shape(self, entry: Entry, negatives: int) -> None:
        """Warn at the first row that differs from earlier rows, once for each of the two differences."""
        before = set(self.shapes)
        self.shapes[negatives] += 1
        if before and (negatives == 0) != (0 in before) and "mixed-pairs-triplets" not in self.counts:
            what = "a triplet after pairs" if negatives else "a pair after triplets"
            self.add(entry, "mixed-pairs-triplets", "negatives", what)
        others = before - {0, negatives}
        if negatives and others and "mixed-negative-counts" not in self.counts:
            message = f"{negatives} negatives, where earlier rows have {min(others)}"
            self.add(entry, "mixed-negative-counts", "negatives", message)

    def report(self, path: str) -> CheckReport:
        if not self.rows:
            self.add(Entry(Path(path), "line", 1, {}), "no-rows", "", "the file is empty or blank")
        # The first finding of each kind, then the second, ..., so that no frequent kind hides a rare one.
        self.kept.sort(key=lambda pair: (pair[1].severity == "warning", pair[0], pair[1].file, pair[1].line))
        shown = [finding for _, finding in self.kept[: self.max_findings]]
        return CheckReport(
            path=path,
            rows=self.rows,
            pairs=self.shapes[0],
            triplets=self.shapes.total() - self.shapes[0],
            counts={kind: self.counts[kind] for kind in KINDS if self.counts[kind]},
            languages=dict(self.languages.most_common()),
            sources=dict(self.sources.most_common()),
            mean_characters={name: self.characters[name] / texts for name, texts in self.texts.items() if texts},
            negatives_per_row=dict(sorted(self.shapes.items())),
            findings=sorted(shown, key=lambda one: (one.file, one.line)),
        )


def text_key(text: str) -> int:
    """Return a signed 64-bit hash of a text. It ignores surrounding whitespace and is the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "big", signed=True)
