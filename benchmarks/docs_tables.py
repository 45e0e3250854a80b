"""Write the tables of the docs from the results of the benchmarks, so that no figure is typed by hand.

python benchmarks/docs_tables.py --take     # also take over what the benchmarks wrote to build/
python benchmarks/docs_tables.py --check    # only say whether the docs are up to date
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUILD = ROOT / "build"
STUDIES = ROOT / "docs" / "studies"
_OURS = "jcv2_plugin.evaluation.study"
STUDY_REPORTS = {
    "matryoshka": f"{_OURS}.matryoshka:MatryoshkaStudy.report",
    "languages": f"{_OURS}.languages:LanguagesStudy.report",
    "masks": f"{_OURS}.masks:MasksStudy.report",
    "lengths": f"{_OURS}.lengths:LengthsStudy.report",
    "recipe": "jcv2_trainer.training.recipe_study:recipe_report",
}
KEPT = "and the % of it that smaller heads keep"
PEER_TABLES = (
    "summary",
    "search_summary",
    "encode",
    "query",
    "index",
    "store",
    "search",
    "equal_recall",
    "train",
    "left_out",
)
NOT_MEASURED = "Not measured yet on a quiet machine."


def first_stages(report: dict[str, Any]) -> str:
    """Recall, nDCG and time of each first stage."""
    from first_stages import table

    numbers = [int(key) for key in report["results"][0]["figures"] if key != "exact"]
    return table(report["results"], numbers)


def growth(report: dict[str, Any]) -> str:
    """How times grow with the number of documents."""
    lines = [
        "| documents | two-stage, to the smallest | exact, to the smallest | two-stage / exact |",
        "|--:|--:|--:|--:|",
    ]
    for row in report["growth"]:
        lines.append(
            f"| {row['documents']:,} | {row['two-stage, to the smallest']:.2f} | {row['exact, to the smallest']:.2f} "
            f"| {row['two-stage/exact']:.3f} |"
        )
    return "\n".join(lines)


def compression(report: dict[str, Any]) -> str:
    """Bytes, nDCG and time of each profile."""
    from compression import table

    return table(report["rows"])


def memory(report: dict[str, Any]) -> str:
    """Memory as a stream is ingested."""
    lines = ["| documents stored | private memory, MiB | peak, MiB |", "|--:|--:|--:|"]
    for row in report["rows"]:
        lines.append(f"| {row['documents']:,} | {row['anonymous MiB']:,} | {row['peak MiB']:,} |")
    return "\n".join(lines)


def overlap(report: dict[str, Any]) -> str:
    """Ratios of ingestion to encoding."""
    lines = ["| documents a second | ratio |", "|---|--:|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in report["ratios"].items()]
    return "\n".join(lines)


def training_throughput(report: dict[str, Any]) -> str:
    """Speed beside sentence-transformers' trainer, and the cost of six heads."""
    from training_throughput import markdown

    return markdown(report)


@cache
def _report(name: str) -> dict[str, Any]:
    """The tables of a study's report by title, from its results in docs/studies."""
    from jcv2_plugin.evaluation.study import Table
    from jcv2_plugin.evaluation.study.record import read, results_of

    module, _, function = STUDY_REPORTS[name].partition(":")
    content = read(STUDIES / f"{name}.json")
    report = attrgetter(function)(import_module(module))(content["settings"], results_of(content))
    return {item.title: item for item in report.items() if isinstance(item, Table)}


def _study(name: str, *titles: str) -> tuple[str, None, Callable[[dict[str, Any]], str]]:
    """Tables of a study's report; where there are several, with their titles."""

    def table(report: dict[str, Any]) -> str:
        tables = [_report(name)[title] for title in titles]
        heads = [f"{one.title}:\n\n" if len(tables) > 1 else "" for one in tables]
        return "\n\n".join(f"{head}{one.markdown()}" for head, one in zip(heads, tables, strict=True))

    return f"studies/{name}", None, table


def _peers(name: str) -> Callable[[dict[str, Any]], str]:
    def table(report: dict[str, Any]) -> str:
        import peer_summary
        import peer_tables

        made: str = getattr(peer_summary if name.endswith("summary") else peer_tables, name)(report)
        return made

    return table


def mini_heads(report: dict[str, Any]) -> str:
    """Heads of mini beside principal components."""
    from mini_heads import markdown

    return markdown(report)


def multilingual(report: dict[str, Any]) -> str:
    """mini-multilingual on every set, beside BM25 and untrained components."""
    from multilingual_quality import markdown

    return markdown(report)


def multilingual_summary(report: dict[str, Any]) -> str:
    """mini-multilingual in each language, beside BM25."""
    from multilingual_quality import summary

    return summary(report)


def half_strength(report: dict[str, Any]) -> str:
    """mini-multilingual beside a variant that was tried, with the adapter at half strength."""
    shipped = json.loads(results_file("multilingual_quality").read_text(encoding="utf-8"))
    dims = (384, 128, 64, 32)
    lines = ["| nDCG@10 | | " + " | ".join(f"{dim} dims" for dim in dims) + " |", "|---|---|" + "--:|" * len(dims)]
    for name in (None, "cnil-faq-fr", "xquad-x-en", "tydi-ko", "xquad-mixed"):
        for kind, one in (("shipped", shipped), ("half strength", report)):
            rows = [row["shipped"] for key, row in one["sets"].items() if name in (None, key)]
            means = (sum(row[str(dim)] for row in rows) / len(rows) for dim in dims)
            lines.append(
                f"| {name or f'mean of {len(rows)}'} | {kind} | {' | '.join(f'{mean:.4f}' for mean in means)} |"
            )
    return "\n".join(lines)


def encoding_profile(report: dict[str, Any]) -> str:
    """Where the time of encoding goes."""
    from encoding_profile import markdown

    return markdown(report)


def _cluster(name: str) -> Callable[[dict[str, Any]], str]:
    def table(report: dict[str, Any]) -> str:
        import cluster

        made: str = getattr(cluster, name)(report)
        return made

    return table


def real_size(report: dict[str, Any]) -> str:
    """Memory and speed at the published size."""
    from real_size import markdown

    return markdown(report)


def large_collection(report: dict[str, Any]) -> str:
    """A collection as it grows."""
    from large_collection import markdown

    return markdown(report)


def pooled_heads(report: dict[str, Any]) -> str:
    """Heads trained for token pooling beside others."""
    from pooled_heads import markdown

    return markdown(report)


def lemur(report: dict[str, Any]) -> str:
    """LEMUR beside the pooled stage."""
    from lemur import markdown

    return markdown(report)


TABLES: dict[str, tuple[str, str | None, Callable[[dict[str, Any]], str]]] = {
    "first-stages": ("first_stages", None, first_stages),
    "growth": ("first_stages", None, growth),
    "lemur": ("lemur", None, lemur),
    "compression": ("compression", None, compression),
    "ingestion-memory": ("ingestion", "memory", memory),
    "ingestion-overlap": ("ingestion", "overlap", overlap),
    "mini-heads": ("mini_heads", None, mini_heads),
    "pooled-heads": ("pooled_heads", None, pooled_heads),
    "multilingual": ("multilingual_quality", None, multilingual),
    "multilingual-summary": ("multilingual_quality", None, multilingual_summary),
    "half-strength": ("half_strength", None, half_strength),
    "training-throughput": ("training_throughput", None, training_throughput),
    **{f"peers-{name.replace('_', '-')}": ("peers", None, _peers(name)) for name in PEER_TABLES},
    "large-collection": ("large_collection", None, large_collection),
    "query-engines": ("peers_query", None, _peers("query")),
    "real-size": ("real_size", None, real_size),
    "encoding-profile": ("encoding_profile", None, encoding_profile),
    "plan-sizes": ("cluster", None, _cluster("plan_table")),
    "plan-hours": ("cluster", None, _cluster("hours_table")),
    "cluster-constants": ("cluster", None, _cluster("table")),
    "quantised-encoding": ("int8", None, _peers("int8")),
    "study-matryoshka": _study("matryoshka", "Each head, averaged over the sets"),
    "study-scenarios": _study("matryoshka", "Which dimension"),
    "study-dims-by-language": _study("matryoshka", f"nDCG@10 by language, {KEPT}"),
    "study-dims-by-length": _study("matryoshka", f"nDCG@10 by length, {KEPT}"),
    "study-languages": _study("languages", "Each set"),
    "study-by-language": _study("languages", "Each language"),
    "study-masks": _study("masks", "Paired difference in nDCG@10 from no expansion, averaged over the sets"),
    "study-recipe": _study("recipe", "nDCG@10 by route and dimension", "Difference from two stages"),
    "study-lengths": _study("lengths", "Time, to SDPA", "Time, to absolute positions", "Memory of a pass, MiB"),
}
"""For each table the file of results, the part of it where it has parts, and the function that makes the table.

Results of studies lie in docs/studies, where ``jcv2 study`` writes them.
"""
# One run makes all of these tables; its command and versions stand once on a page, under the last of them.
_CAPTIONED = ("left_out",)
_CAPTIONED_ELSEWHERE = {"multilingual-summary", "plan-sizes", "plan-hours"} | {
    f"peers-{name.replace('_', '-')}" for name in PEER_TABLES if name not in _CAPTIONED
}
_MARKED = re.compile(r"<!-- table: ([a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)


def caption(report: dict[str, Any]) -> str:
    """The command, versions and machine behind a table."""
    report = report["runs"][-1] if "runs" in report else report
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    machine = report["machine"]
    return f"`{report['command']}`; {machine['cpu']}, {machine['threads']} thread(s) of torch; {versions}."


def results_file(result: str) -> Path:
    """Where the results behind a table are."""
    folder, _, name = result.rpartition("/")
    return (STUDIES if folder == "studies" else RESULTS) / f"{name}.json"


def render(page: str) -> str:
    """A page with its tables written anew."""

    def write(found: re.Match[str]) -> str:
        name = found[1]
        result, part, table = TABLES[name]
        if not results_file(result).exists():
            return f"<!-- table: {name} -->\n{NOT_MEASURED}\n<!-- end -->"
        report = json.loads(results_file(result).read_text(encoding="utf-8"))
        if part is not None:
            report = report[part]
        below = "" if name in _CAPTIONED_ELSEWHERE else f"\n\n{caption(report)}"
        return f"<!-- table: {name} -->\n{table(report)}{below}\n<!-- end -->"

    return _MARKED.sub(write, page)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--take", action="store_true")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if options.take:
        RESULTS.mkdir(exist_ok=True)
        for name in sorted({result for result, _, _ in TABLES.values() if "/" not in result}):
            if (BUILD / f"{name}.json").exists():
                shutil.copy(BUILD / f"{name}.json", RESULTS / f"{name}.json")
    stale = []
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")]):
        old = page.read_text(encoding="utf-8")
        if (new := render(old)) != old:
            stale.append(page.name)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    print(f"{'out of date' if options.check else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
