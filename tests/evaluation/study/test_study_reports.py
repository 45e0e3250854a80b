"""Reports hold every figure, need nothing beside them, and can be read without eyes for colour."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from bs4 import BeautifulSoup
from study_samples import Counting, write_sets

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.evaluation.study import Cell, Chart, Report, Study, StudyError, Table, run_study
from jcv2_plugin.evaluation.study.base import Interval
from jcv2_plugin.evaluation.study.charts import svg
from jcv2_plugin.evaluation.study.languages import LanguagesStudy
from jcv2_plugin.evaluation.study.masks import MasksStudy
from jcv2_plugin.evaluation.study.matryoshka import Head, MatryoshkaStudy, scenarios
from jcv2_plugin.evaluation.study.record import read, results_of
from jcv2_plugin.evaluation.study.retrieval import Sampling
from jcv2_plugin.evaluation.study.running import shown

pytestmark = pytest.mark.usefixtures("one_thread")


def tables(report: Report) -> dict[str, Table]:
    return {item.title: item for item in report.items() if isinstance(item, Table)}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory, mini: JinaColbertEncoder) -> dict[str, tuple[Study, Path]]:
    """Each study that needs a model, measured on two small sets."""
    folder = tmp_path_factory.mktemp("studies")
    sampling = Sampling(write_sets(folder / "data"), ("one", "two"), "test", 6, 20, 2)
    made: list[Study] = [
        MatryoshkaStudy(mini, sampling),
        LanguagesStudy(mini, sampling, 64),
        MasksStudy(mini, sampling, 64, length=16),
    ]
    for study in made:
        run_study(study, folder)
    return {study.name: (study, folder) for study in made}


@pytest.mark.parametrize(("name", "number"), [("matryoshka", 24), ("languages", 8), ("masks", 12)])
def test_a_page_is_whole(studies: dict[str, tuple[Study, Path]], name: str, number: int) -> None:
    study, folder = studies[name]
    page = (folder / f"{name}.html").read_text(encoding="utf-8")
    content, soup = read(folder / f"{name}.json"), BeautifulSoup(page, "html.parser")
    assert len(content["cells"]) == number
    shown_texts = {one.get_text() for one in soup.find_all(["td", "th"])}
    for cell in content["cells"]:
        assert {shown(value) for part in ("parameters", "values") for value in cell[part].values()} <= shown_texts
    for fact in [*content["settings"]["fingerprint"].values(), *content["runs"][0]["versions"].values()]:
        assert fact in page
    report = study.report(content["settings"], results_of(content))
    assert report.findings
    assert any(isinstance(item, Chart) for item in next(iter(report.sections.values())))
    for table in tables(report).values():
        assert {len(row) for row in table.rows} == {len(table.columns)}
        assert {text for row in table.rows for text in row} <= shown_texts
    for sentence in [*report.findings, *report.limits]:
        assert sentence in soup.get_text()
    assert not soup.find_all(["script", "link", "iframe"])
    assert not soup.find_all(lambda tag: tag.has_attr("src") or tag.has_attr("href"))
    assert not re.findall(r"url\(|@import", page)
    drawn = (folder / f"{name}.svg").read_text(encoding="utf-8")
    assert drawn.strip() in page


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    run_study(Counting(settings={"model": "<script>alert(1)</script>"}), tmp_path)
    page = (tmp_path / "counting.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    root = ElementTree.fromstring((tmp_path / "counting.svg").read_text())
    assert root.get("role") == "img"
    assert (
        root.get("aria-label") == 'Shows "values" <by> number: number 0, number 1, number 2, number 3' == root[1].text
    )


def test_a_chart_has_a_row_for_each_category_and_marks_that_differ_in_more_than_colour() -> None:
    names = [f"language {n}" for n in range(25)]
    one = Interval(0.5, 0.4, 0.6)
    series = {"a": {name: None if n == 3 else one for n, name in enumerate(names)}, "b": dict.fromkeys(names, one)}
    drawn = svg(Chart("Dots", "x", series, reference=1))
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)<', drawn)
    rows = {text: float(y) for _, y, text in texts if text in names}
    assert list(rows) == names == sorted(names, key=lambda name: rows[name])
    assert min(rows[names[n + 1]] - rows[names[n]] for n in range(24)) > 15
    assert [sum(text == mark for _, _, text in texts) for mark in "●■"] == [24 + 1, 25 + 1]  # and the legend
    ticks = {float(text): float(x) for x, _, text in texts if re.fullmatch(r"[\d.]+", text)}
    assert min(ticks) <= 0.4
    assert max(ticks) >= 1
    at = [float(x) for x, _, text in texts if text == "■"][-1]
    assert at == pytest.approx(ticks[0.5], abs=0.1)


def test_which_dimension_follows_the_rules() -> None:
    heads = [(128, 0.80, 0.95), (64, 0.81, 0.95), (32, 0.79, 0.945), (16, 0.60, 0.70)]
    table = scenarios([Head(dim, Interval(*3 * [ndcg]), Interval(*3 * [recall]), 1.0) for dim, ndcg, recall in heads])
    assert {row[0]: row[1] for row in table.rows} == {
        "The best nDCG@10": "64",
        "Within 1% of the best nDCG@10": "64",
        "Within 3% of the best nDCG@10": "32",
        "Finding candidates: within 1% of the best Recall@100": "32",
        "At most 64 bytes a token in float16": "32",
        "At most 128 bytes a token in float16": "64",
        "At most 256 bytes a token in float16": "64",
        "At most 512 bytes a token in float16": "64",
    }


def test_differences_are_paired_and_of_what_can_be_compared(studies: dict[str, tuple[Study, Path]]) -> None:
    study, folder = studies["languages"]
    content = read(folder / "languages.json")
    settings, cells = content["settings"], results_of(content)
    some = tables(study.report(settings, cells[:3]))
    assert [row[0] for row in some["Each set"].rows] == ["one"]
    assert [row[0] for row in some["Each language"].rows] == ["en"]
    with pytest.raises(StudyError, match="nothing to report"):
        study.report(settings, cells[:1])
    same = [
        Cell({**cell.parameters, "system": system}, cell.values, cell.samples)
        for cell in cells
        for system in ("model", "BM25")
        if cell.parameters["system"] == "model"
    ]
    assert {row[4] for row in tables(study.report(settings, same))["Each set"].rows} == {"+0.000 [+0.000, +0.000]"}


def kept(ndcg: dict[str, list[float]], queries: int = 30) -> dict[str, Table]:
    """Tables on a set across languages and an English one with this nDCG@10 at 128, 64 and 32 dimensions."""
    cells = []
    for name, own in (("plain", ["en"]), ("crossing", ["de->en", "sw->en"])):
        asked = {f"{language}{n}": language for language in own for n in range(queries)}
        relevant = {query: 50.0 + 100 * (int(query[-1]) % 2) for query in asked}
        for place, dim in enumerate((128, 64, 32)):
            found = {query: ndcg[language][place] for query, language in asked.items()}
            samples = {"ndcg@10": found, "recall@100": found, "relevant tokens": relevant}
            values = {**dict.fromkeys(("documents", "queries", "tokens a document"), 50), "language": "en"}
            parameters = {"set": name, "seed": 0, "dim": dim}
            values["scoring time, to the largest head"] = 1
            cells.append(Cell(parameters, values, samples, {} if name == "plain" else asked))
    return tables(MatryoshkaStudy.report({"model": "none", "documents": None}, cells))


KEPT = "nDCG@10 by {}, and the % of it that smaller heads keep"


def test_what_heads_keep_is_told_by_language_and_length() -> None:
    ndcg = {"en": [0.8, 0.8, 0.78], "de->en": [0.5, 0.49, 0.25], "sw->en": [0.4, 0.3, 0.3]}
    found = kept(ndcg)
    assert found[KEPT.format("language")].rows == [
        ["de->en", "30", "0.500 [0.500, 0.500]", "98.0 [98.0, 98.0]", "50.0 [50.0, 50.0]", "64"],
        ["sw->en", "30", "0.400 [0.400, 0.400]", "75.0 [75.0, 75.0]", "75.0 [75.0, 75.0]", "128"],
        ["en", "30", "0.800 [0.800, 0.800]", "100.0 [100.0, 100.0]", "97.5 [97.5, 97.5]", "32"],
    ]
    assert [row[:2] for row in found[KEPT.format("length")].rows] == [["1–64", "45"], ["129–256", "45"]]
    # Little is said of few queries, and of languages in which nothing is found.
    few = {row[0]: row[3:] for row in kept({**ndcg, "de->en": [0, 0, 0]}, queries=19)[KEPT.format("language")].rows}
    assert few["de->en"] == ["–", "–", "–"]
    assert few["en"] == ["100.0 [100.0, 100.0]", "97.5 [97.5, 97.5]", "–"]
