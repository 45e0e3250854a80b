"""Small test sets in BEIR layout, and a study that needs no model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jcv2_plugin.evaluation.study import Cell, Chart, Report
from jcv2_plugin.evaluation.study.intervals import mean_over_sets

THINGS = ("ferry", "harbour", "rice", "telescope", "bread", "oven", "violin", "glacier", "bridge", "river", "lantern")


def write_set(folder: Path, *, language: str = "en", documents: int = 24, queries: int = 8) -> Path:
    """A set in which each query asks for one document, which shares a word and a number with it."""
    (folder / "qrels").mkdir(parents=True)
    texts = [
        f"Note {n} is about the {THINGS[n % 11]}" + f" and the {THINGS[(n * 7 + 3) % 11]}" * (1 + n % 5) + "."
        for n in range(documents)
    ]
    corpus = [{"_id": f"d{n}", "title": "", "text": text} for n, text in enumerate(texts)]
    asked = [{"_id": f"q{n}", "text": f"what does note {n} say" + " about it" * (n % 4)} for n in range(queries)]
    for name, rows in (("corpus", corpus), ("queries", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(queries))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps({"lang": language}), encoding="utf-8")
    return folder


def write_sets(folder: Path) -> Path:
    """A folder with the sets ``one``, in English, and ``two``, said to be German."""
    write_set(folder / "one")
    write_set(folder / "two", language="de", documents=30, queries=12)
    return folder


class Counting:
    """A study of made-up figures that counts what it measures, and calls ``before`` with each number."""

    name = "counting"
    title = "Counting"

    def __init__(
        self,
        numbers: Sequence[int] = range(4),
        settings: Mapping[str, Any] | None = None,
        before: Callable[[int], object] = lambda number: None,
    ) -> None:
        self.numbers = numbers
        self.settings = dict(settings or {"model": "none"})
        self.before = before
        self.done: list[int] = []

    def cells(self) -> Sequence[Cell]:
        return [Cell({"number": number}) for number in self.numbers]

    def measure(self, cell: Cell) -> Cell:
        number = int(cell.parameters["number"] or 0)
        self.before(number)
        self.done.append(number)
        samples = {f"q{query}": (number + query) / 7 for query in range(5)}
        values = {"mean": sum(samples.values()) / 5, "even": number % 2 == 0, "none": None}
        return cell.measured(values, {"value": samples}, {"q0": "de->en"} if number else {})

    def report(self, settings: Mapping[str, Any], cells: Sequence[Cell]) -> Report:
        series = {"<value> & more": {cell.key: mean_over_sets([[cell.samples["value"]]]) for cell in cells}}
        chart = Chart('Shows "values" <by> number', "value", series)
        return Report("What is it?", [f"{len(cells)} numbers"], {"Numbers": ["Text.", chart]}, ["Little."])
