"""Mine hard negatives: passages that a model or BM25 ranks high for a query, without likely positives.

A passage is not used as a negative if it is a positive of the same query anywhere in the file, or the query itself
(ignoring whitespace), if it is a duplicate, or if its score is so close to the row's positive, or above it, that it is
probably an unlabelled positive.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from jcv2_trainer.data.reading import DataError, mendable_rows
from jcv2_trainer.mining.resumable import Progress, file_identity, open_output, short_of_memory
from jcv2_trainer.mining.sources import CollectionSource, Finder, Found, Source, passage_key
from jcv2_trainer.recipes import Recipe

if TYPE_CHECKING:
    from jcv2_plugin.collection.collection import ColbertCollection

_MOST_POSITIVES = 1000  # of one query, for which additional results are requested

COUNTED = (
    *("full", "short", "empty", "dropped", "negatives", "stale_scores"),
    *("positives", "duplicates", "range_min", "relative_margin", "absolute_margin", "max_score"),
)
"""Keys of :attr:`MineReport.counts`."""


class MineRecipe(Recipe):
    """Settings for mining hard negatives. The field descriptions are also the flags' help.

    Jina-ColBERT-v2 was trained with seven negatives a row (arXiv 2408.16672, section 3). The margin is the one that
    NV-Retriever found best (TopK-PercPos 95 %, arXiv 2407.15831, for the cosine similarity of single vectors). MaxSim
    sums cosine similarities of tokens, which lie closer together, so 5 % is no smaller a margin there: with the model
    mini on 600 docstrings, the passage of rank 100 has 64 % of the positive's score by MaxSim, 42 % by cosine of means.
    """

    negatives: int = Field(7, ge=1, description="Maximum number of negatives for each row.")
    range_min: int = Field(0, ge=0, description="Number of best candidates to skip.")
    range_max: int = Field(100, ge=1, description="Consider candidates up to this rank.")
    relative_margin: float | None = Field(
        0.05,
        lt=1,
        description="Drop candidates that score above the positive minus this share of its score. A negative number "
        "keeps candidates above the positive.",
    )
    absolute_margin: float | None = Field(
        None, description="Drop candidates that score above the positive's score minus this."
    )
    max_score: float | None = Field(None, description="Drop candidates that score above this.")
    sampling: Literal["top", "random"] = Field(
        "top", description="Take the best of the remaining candidates ('top'), or a random sample ('random')."
    )
    seed: int = Field(13, ge=0, lt=2**32, description="Seed of random sampling.")
    keep_existing: bool = Field(False, description="Keep the negatives that a row already has, and add to them.")
    drop_empty: bool = Field(False, description="Leave out rows without negatives. Otherwise they are kept as pairs.")
    exact: bool = Field(False, description="Rank all documents by MaxSim, not only those that the first stage finds.")
    lang: str | None = Field(None, description="Language of the texts, for BM25. Defaults to that of the rows.")
    batch_size: int = Field(64, ge=1, description="Rows to search at once. A killed run repeats at most one batch.")

    @model_validator(mode="after")
    def _fit_together(self) -> MineRecipe:
        if self.range_max - self.range_min < self.negatives:
            ranks = f"ranks {self.range_min} to {self.range_max}"
            raise ValueError(f"{ranks} hold fewer than {self.negatives} candidates; raise range_max")
        return self


@dataclass
class MineReport:
    """Result of :func:`mine`: rows read, how many of them in an earlier run, and the numbers of :data:`COUNTED`.

    These are ``full``, ``short`` and ``empty`` rows (with as many negatives as requested, fewer, none) and ``dropped``
    ones; ``negatives`` written; rows with ``stale_scores``, which were removed because they belonged to other
    negatives; and candidates rejected, by reason.
    """

    rows: int
    resumed_at: int
    counts: dict[str, int]


class Survey:
    """Queries, positives and languages of a training file, from a first pass: about 300 bytes a distinct query."""

    def __init__(self, data: Path) -> None:
        self._positives: defaultdict[int, set[int]] = defaultdict(set)
        self.languages: Counter[str] = Counter()
        for row in mendable_rows(data):
            self._positives[passage_key(row["query"])].add(passage_key(row["positive"]))
            self.languages[row.get("lang") or "en"] += 1
        if not self.languages:
            raise DataError(f"{data} has no rows. Give a file of pairs or triplets.")
        self.rows = self.languages.total()

    def positives(self, query: str) -> set[int]:
        """Return the keys of a query's positives anywhere in the file."""
        return self._positives.get(passage_key(query), set())


def mine(
    data: Path,
    out: Path,
    source: ColbertCollection | Source,
    settings: MineRecipe,
    *,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    index_progress: Callable[[int], None] | None = None,
) -> MineReport:
    """Mine hard negatives for the rows of a training file, and write the rows with their new negatives.

    The order and all other fields are kept. The file is read twice. Besides the index, a batch of rows and the keys
    of the queries are held in memory. ``progress`` is called after each batch, ``index_progress`` with the number of
    passages indexed since the last call. For ``out``, ``resume`` and ``force``, see
    :func:`~jcv2_trainer.mining.resumable.open_output`.

    Raises:
        DataError: A row is invalid. The first one is reported, before anything is written.
        OutputError: ``out`` exists, or its run cannot be resumed.
        OutOfMemoryError: The batch is too large.
    """
    chosen = source if isinstance(source, Source) else CollectionSource(source)
    identity = {
        "command": "mine",
        "input files": file_identity(data),
        "settings": settings.model_dump(exclude={"batch_size"}),
        "source": chosen.identity(),
    }
    with open_output(out, identity, data=data, resume=resume, force=force) as output:
        survey = Survey(data)
        lang = settings.lang or "+".join(sorted(survey.languages))
        rows = mendable_rows(data, output.rows)
        with chosen.opened(data, lang, output.scratch, index_progress) as finder:
            while batch := list(islice(rows, settings.batch_size)):
                written = _mined(batch, output.rows, finder, survey, settings, output.counts)
                output.append(written, len(batch))
                if progress is not None:
                    progress(output.rows, survey.rows)
    return MineReport(output.rows, output.resumed_at, {name: output.counts[name] for name in COUNTED})


def _mined(
    batch: Sequence[dict[str, Any]],
    first: int,
    finder: Finder,
    survey: Survey,
    settings: MineRecipe,
    counts: Counter[str],
) -> list[dict[str, Any]]:
    known = [survey.positives(row["query"]) for row in batch]
    # Positives do not count as ranks, so request that many more results.
    k = settings.range_max + min(max(map(len, known)), _MOST_POSITIVES)
    queries, positives = [row["query"] for row in batch], [row["positive"] for row in batch]
    with short_of_memory(settings.batch_size):
        found = finder(queries, positives, k, settings.exact)
    written = []
    for index, (row, one, right) in enumerate(zip(batch, found, known, strict=True), first):
        # Seeded by the row, so that it draws the same in any batch and any run.
        draw = random.Random(f"{settings.seed}:{index}") if settings.sampling == "random" else None
        negatives = choose_negatives(row, one, right, settings, counts, draw)
        counts["negatives"] += len(negatives)
        counts["empty" if not negatives else "full" if len(negatives) >= settings.negatives else "short"] += 1
        if negatives or not settings.drop_empty:
            written.append(_with_negatives(row, negatives, counts))
        else:
            counts["dropped"] += 1
    return written


def choose_negatives(
    row: dict[str, Any],
    found: Found,
    known: set[int],
    settings: MineRecipe,
    counts: Counter[str],
    draw: random.Random | None = None,
) -> list[str]:
    """Return the negatives of one row: its own first, if they are kept, then candidates by rank.

    ``known`` are the keys of the query's positives. ``counts`` gets the rejected candidates, by reason. ``draw``
    samples from the remaining candidates; without it, the best are taken.
    """
    right = {*known, passage_key(row["positive"]), passage_key(row["query"])}
    seen: set[int] = set()
    negatives: list[str] = []

    def is_new(text: str) -> bool:
        key = passage_key(text)
        if key in right or key in seen:
            counts["positives" if key in right else "duplicates"] += 1
            return False
        seen.add(key)
        return True

    if settings.keep_existing:
        negatives.extend(text for text in row.get("negatives") or [] if is_new(text))
    wanted = settings.negatives - len(negatives)
    ceilings = _ceilings(found.positive_score, settings)
    left: list[str] = []
    rank = 0
    for text, score in found.hits:
        if rank >= settings.range_max or wanted <= 0 or (draw is None and len(left) >= wanted):
            break
        if not is_new(text):
            continue
        rank += 1
        if rank <= settings.range_min:
            counts["range_min"] += 1
        elif (reason := next((name for name, ceiling in ceilings if score > ceiling), None)) is not None:
            counts[reason] += 1
        else:
            left.append(text)
    if draw is not None and 0 < wanted < len(left):
        left = [left[position] for position in sorted(draw.sample(range(len(left)), wanted))]
    return negatives + left


def _ceilings(positive: float, settings: MineRecipe) -> list[tuple[str, float]]:
    # Relative to the magnitude, so that the margin is below the positive even if its score is negative.
    relative = None if settings.relative_margin is None else positive - settings.relative_margin * abs(positive)
    absolute = None if settings.absolute_margin is None else positive - settings.absolute_margin
    known = {"relative_margin": relative, "absolute_margin": absolute, "max_score": settings.max_score}
    return [(name, ceiling) for name, ceiling in known.items() if ceiling is not None]


def _with_negatives(row: dict[str, Any], negatives: list[str], counts: Counter[str]) -> dict[str, Any]:
    new = {**row, "negatives": negatives}
    if not negatives:
        del new["negatives"]
    if negatives != (row.get("negatives") or []) and new.pop("scores", None) is not None:
        counts["stale_scores"] += 1
    return new
