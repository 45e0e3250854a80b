"""Reports hold every figure, need nothing beside them, and can be read without eyes for colour."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from study_samples import Counting, write_sets

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.evaluation.study import Result, Study, StudyError, Table, rendering, run_study
from jcv2_plugin.evaluation.study.base import Chart
from jcv2_plugin.evaluation.study.charts import Bars, bar_chart, dot_chart
from jcv2_plugin.evaluation.study.intervals import Interval
from jcv2_plugin.evaluation.study.languages import LanguagesStudy, by_language_table, languages_table
from jcv2_plugin.evaluation.study.masks import MasksStudy
from jcv2_plugin.evaluation.study.matryoshka import MatryoshkaStudy
from jcv2_plugin.evaluation.study.matryoshka_report import Head, kept_table, languages_of, lengths_of, scenarios
from jcv2_plugin.evaluation.study.record import read, results_of
from jcv2_plugin.evaluation.study.rendering import shown
from jcv2_plugin.evaluation.study.retrieval import Sampling


class Reader(HTMLParser):
    """Text of table cells, and everything that would be fetched."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self._open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open = tag in ("td", "th")
        if self._open:
            self.cells.append("")
        named = dict(attrs)
        self.ids += [value for name, value in attrs if name == "id" and value]
        self.fetched += [f"{tag} {value}" for name in ("src", "href") if (value := named.get(name))]
        if tag in ("script", "link", "iframe"):
            self.fetched.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.cells[-1] += data


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, mini: JinaColbertEncoder) -> dict[str, tuple[Study, Path]]:
    """Each study that needs a model, measured on two small sets."""
    folder = tmp_path_factory.mktemp("studies")
    sampling = Sampling(write_sets(folder / "data"), ("one", "two"), "test", 6, 20, 2)
    made: list[Study] = [
        MatryoshkaStudy(mini, sampling),
        LanguagesStudy(mini, 64, sampling),
        MasksStudy(mini, 64, sampling, length=16),
    ]
    for study in made:
        run_study(study, folder)
    return {study.name: (study, folder) for study in made}


NAMES = ("matryoshka", "languages", "masks")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_has_every_figure_of_the_file(studies: dict[str, tuple[Study, Path]], name: str) -> None:
    _, folder = studies[name]
    cells = Reader((folder / f"{name}.html").read_text(encoding="utf-8")).cells
    content = read(folder / f"{name}.json")
    assert len(content["cells"]) == {"matryoshka": 24, "languages": 8, "masks": 12}[name]
    for cell in content["cells"]:
        for value in [*cell["parameters"].values(), *cell["values"].values()]:
            assert shown(value) in cells
    page = unescape((folder / f"{name}.html").read_text(encoding="utf-8"))
    for fact in [*map(str, content["settings"]["fingerprint"].values()), *content["runs"][0]["versions"].values()]:
        assert fact in page


@pytest.mark.parametrize("name", NAMES)
def test_a_page_needs_nothing_beside_it(studies: dict[str, tuple[Study, Path]], name: str) -> None:
    page = (studies[name][1] / f"{name}.html").read_text(encoding="utf-8")
    reader = Reader(page)
    assert not [one for one in reader.fetched if not one.startswith("use #")]
    assert not re.findall(r"url\((?!#)|@import", page)
    assert "prefers-color-scheme: dark" in page


@pytest.mark.parametrize("name", NAMES)
def test_every_table_of_a_report_is_rectangular_and_on_the_page(
    studies: dict[str, tuple[Study, Path]], name: str
) -> None:
    study, folder = studies[name]
    report = study.report(results_of(read(folder / f"{name}.json")))
    cells = Reader((folder / f"{name}.html").read_text(encoding="utf-8")).cells
    tables = [item for section in report.sections for item in section.items if isinstance(item, Table)]
    assert tables
    for table in tables:
        assert table.rows
        for row in table.rows:
            assert len(row) == len(table.columns)
            assert set(row) <= set(cells)
    assert report.findings
    assert report.limits


@pytest.mark.parametrize("name", NAMES)
def test_the_chart_is_svg_with_a_description(studies: dict[str, tuple[Study, Path]], name: str) -> None:
    svg = (studies[name][1] / f"{name}.svg").read_text(encoding="utf-8")
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root[1].text == root.get("aria-label")
    assert "one" in svg or "attended" in svg  # text is text
    assert svg in (studies[name][1] / f"{name}.html").read_text(encoding="utf-8") + "\n"


def test_a_report_of_equal_figures_is_the_same_to_the_byte(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_study(Counting(), tmp_path / name)
    assert (tmp_path / "a" / "counting.svg").read_bytes() == (tmp_path / "b" / "counting.svg").read_bytes()


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    run_study(Counting(settings={"model": "<script>alert(1)</script>"}), tmp_path)
    page = (tmp_path / "counting.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    root = ElementTree.fromstring((tmp_path / "counting.svg").read_text())
    assert root.get("aria-label") == 'Shows "values" <by> number'


def test_series_differ_in_more_than_colour() -> None:
    bars = [Bars(f"series {n}", [Interval(0.5, 0.4, 0.6), None]) for n in range(3)]
    svg = bar_chart("Bars", ["a", "b"], bars, y_label="y")
    without_colour = re.sub(r"#[0-9a-f]{6}", "", svg)
    assert len(set(re.findall(r"fill: url\(#([\w]+)\)", without_colour))) >= 2


def test_dots_have_a_row_for_each_category_and_differ_in_more_than_colour() -> None:
    languages = [f"language {n}" for n in range(25)]
    one = Interval(0.5, 0.4, 0.6)
    svg = dot_chart("Dots", languages, [Bars("a", [one, None] * 12 + [one]), Bars("b", [one] * 25)], x_label="x")
    assert re.findall(r">(language \d+)</text>", svg) == languages
    markers = {found[1]: found[2] for found in re.finditer(r'<path id="(\w+)" d="([^"]+)"', svg)}
    used = [markers[name] for name in re.findall(r'<use xlink:href="#(\w+)"', svg) if name in markers]
    assert {used.count(shape) for shape in set(used)} >= {13 + 1, 25 + 1}  # one more in the legend
    height = float(ElementTree.fromstring(svg).get("height", "").removesuffix("pt"))
    assert height / 72 > 25 * 0.2  # rows do not run into each other


def test_which_dimension_follows_the_rules() -> None:
    def head(dim: int, ndcg: float, recall: float) -> Head:
        return Head(dim, Interval(ndcg, ndcg, ndcg), Interval(recall, recall, recall), 1.0)

    table = scenarios([head(128, 0.80, 0.95), head(64, 0.81, 0.95), head(32, 0.79, 0.945), head(16, 0.60, 0.70)])
    chosen = {row[0]: row[1] for row in table.rows}
    assert chosen == {
        "Nothing may be lost: the best nDCG@10": "64",
        "Within 1% of the best nDCG@10": "64",
        "Within 3% of the best nDCG@10": "32",
        "Finding candidates: within 1% of the best Recall@100": "32",
        "At most 64 bytes a token in float16": "32",
        "At most 128 bytes a token in float16": "64",
        "At most 256 bytes a token in float16": "64",
        "At most 512 bytes a token in float16": "64",
    }


def test_a_part_that_cannot_be_compared_is_left_out(studies: dict[str, tuple[Study, Path]]) -> None:
    study, folder = studies["languages"]
    results = results_of(read(folder / "languages.json"))
    assert study.report(results[:3])
    assert [row[0] for row in languages_table(results[:3]).rows] == ["one"]
    assert [row[0] for row in by_language_table(results[:3]).rows] == ["en"]
    with pytest.raises(StudyError, match="nothing to report"):
        study.report(results[:1])


def test_a_difference_of_systems_is_paired(studies: dict[str, tuple[Study, Path]]) -> None:
    study, folder = studies["languages"]
    results = [one for one in results_of(read(folder / "languages.json")) if one.parameters["set"] == "one"]
    same = [
        Result({**one.parameters, "system": system}, one.values, one.samples)
        for one in results
        if one.parameters["system"] == "model"
        for system in ("model", "BM25")
    ]
    assert study.report(same)
    for table in (languages_table(same), by_language_table(same)):
        assert table.rows[0][4] == "+0.000 [+0.000, +0.000]"


def kept(ndcg: dict[str, dict[int, float]], queries: int = 30) -> list[Result]:
    """Results of a set across languages and of an English one, with nDCG@10 by language and dimension."""
    return [
        Result(
            {"set": name, "seed": 0, "dim": dim},
            {"language": "en"},
            {
                "ndcg@10": {f"{language}{n}": ndcg[language][dim] for language in own for n in range(queries)},
                "relevant tokens": {f"{language}{n}": 50.0 + 100 * (n % 2) for language in own for n in range(queries)},
            },
            {} if name == "plain" else {f"{language}{n}": language for language in own for n in range(queries)},
        )
        for name, own in (("plain", ["en"]), ("crossing", ["de->en", "sw->en"]))
        for dim in (128, 64, 32)
    ]


def test_what_heads_keep_is_told_by_language() -> None:
    results = kept(
        {
            "en": {128: 0.8, 64: 0.8, 32: 0.78},
            "de->en": {128: 0.5, 64: 0.49, 32: 0.25},
            "sw->en": {128: 0.4, 64: 0.3, 32: 0.3},
        }
    )
    assert list(kept_table("language", languages_of(results)).rows) == [
        ["de->en", "30", "0.500 [0.500, 0.500]", "98.0 [98.0, 98.0]", "50.0 [50.0, 50.0]", "64"],
        ["sw->en", "30", "0.400 [0.400, 0.400]", "75.0 [75.0, 75.0]", "75.0 [75.0, 75.0]", "128"],
        ["en", "30", "0.800 [0.800, 0.800]", "100.0 [100.0, 100.0]", "97.5 [97.5, 97.5]", "32"],
    ]
    assert [[row[0], row[1]] for row in kept_table("length", lengths_of(results)).rows] == [
        ["1–64", "45"],
        ["129–256", "45"],
    ]


def test_little_is_said_of_few_queries_and_of_languages_in_which_nothing_is_found() -> None:
    nothing = {128: 0.0, 64: 0.0, 32: 0.0}
    results = kept({"en": {128: 0.8, 64: 0.7, 32: 0.6}, "de->en": nothing, "sw->en": nothing}, queries=19)
    rows = {row[0]: row[3:] for row in kept_table("language", languages_of(results)).rows}
    assert rows["de->en"] == ["–", "–", "–"]
    assert rows["en"] == ["87.5 [87.5, 87.5]", "75.0 [75.0, 75.0]", "–"]


def test_charts_come_first_in_reports(studies: dict[str, tuple[Study, Path]]) -> None:
    for study, folder in studies.values():
        report = study.report(results_of(read(folder / f"{study.name}.json")))
        assert isinstance(report.sections[0].items[0], Chart)


def test_what_is_not_installed_is_said_before_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(StudyError, match=r"matplotlib: pip install 'jcv2-plugin\[study\]'"):
        run_study(study := Counting(), tmp_path)
    assert study.measured == []
