"""Report on a training run, in ``training.json``, and in the model card with a chart of quality by dimension."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from jcv2_plugin.console import name
from jcv2_plugin.evaluation.study.base import Chart, Interval
from jcv2_plugin.evaluation.study.charts import svg
from jcv2_trainer.training.runs import versions

CURVE = "curve.svg"
TAGS = """---
library_name: sentence-transformers
tags:
- sentence-transformers
- multi-vector
- ColBERT
- late-interaction
"""
"""Start of a card's metadata, which a line of dashes ends."""


@dataclass
class TrainingReport:
    """Data, recipe and results of a run.

    ``skipped`` counts rows by reason. ``before`` and ``after`` are nDCG@10 on the dev set by dimension, of the initial
    model (new heads as initialised) and of the saved weights, which are those of ``best_step``.
    """

    model: str
    stage: str
    rows: int
    skipped: dict[str, int]
    data: dict[str, Any]
    dev: dict[str, Any]
    recipe: dict[str, Any]
    added_dims: tuple[int, ...] = ()
    steps: int = 0
    best_step: int = 0
    before: dict[int, float] = field(default_factory=dict)
    after: dict[int, float] = field(default_factory=dict)
    pooled_before: dict[str, dict[int, float]] = field(default_factory=dict)
    """The same as ``before`` with pooled passages, by token pooling factor. 1 is not among them."""
    pooled_after: dict[str, dict[int, float]] = field(default_factory=dict)
    finished: bool = True
    history: list[dict[str, float]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)


def write_card(folder: Path, report: TrainingReport) -> None:
    """Write ``README.md`` and, if there is a dev set, ``curve.svg`` to a model folder."""
    if report.after:
        (folder / CURVE).write_text(curve(report.before, report.after), encoding="utf-8")
    (folder / "README.md").write_text(card(report), encoding="utf-8")


def card(report: TrainingReport) -> str:
    """Return the model card as Markdown: data, recipe, results by dimension, and how to load the model."""
    unfinished = "" if report.finished else f"\n**Unfinished**: stopped after {report.steps:,} steps.\n"
    argument = "".join(f", dim={dim}" for dim in list(report.after)[:1])
    data = report.data
    files = ", ".join(f"`{name(one)}`" for one in data["files"])
    languages, sources = (
        ", ".join(escape(name(one)) or "(none given)" for one in data[names]) for names in ("languages", "sources")
    )
    skipped = "".join(f"- left out, {reason}: {count:,} rows\n" for reason, count in report.skipped.items())
    recipe = {key: list(value) if isinstance(value, tuple) else value for key, value in report.recipe.items()}
    fields = "".join(f"{key}: {'null' if value is None else value}\n" for key, value in recipe.items())
    return f"""{TAGS}pipeline_tag: sentence-similarity
base_model: {name(report.model)}
---

# Late-interaction retriever, finetuned from {name(report.model)}

Trained with `jcv2-finetune` of jcv2-plugin: one linear head for each Matryoshka dimension, MaxSim scoring.
{unfinished}
## Quality

{_figures(report)}
## Use

```python
from jcv2_plugin import JinaColbertEncoder

encoder = JinaColbertEncoder.from_pretrained("path/to/this/folder")
query = encoder.encode_query("..."{argument})
```

`encoder.export(folder, dim=...)` writes one head in the layout that sentence-transformers and PyLate read.

## Data

- files: {files}
- rows trained on: {report.rows:,} ({data["with_negatives"]:,} with negatives, {data["with_scores"]:,} with a \
teacher's scores)
- languages: {languages}
- sources: {sources}
{skipped}
## Recipe

`jcv2-finetune {report.stage}`, {report.steps:,} steps.

```yaml
{fields}```

Versions: {listed(report.versions)}.
"""


def listed(versions: Mapping[str, str]) -> str:
    """Return versions as a list in a sentence."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _figures(report: TrainingReport) -> str:
    if not report.after:
        return "Not measured: there was no dev set.\n"
    rows = "".join(
        f"| {dim} | {2 * dim} | {report.before[dim]:.4f} | {after:.4f} | {after - report.before[dim]:+.4f} |\n"
        for dim, after in report.after.items()
    )
    dims = ", ".join(map(str, report.added_dims))
    added = f"\nHeads added in this training: {dims}.\n" if dims else ""
    return f"""nDCG@10 on the dev set ({report.dev["queries"]:,} queries, {report.dev["documents"]:,} passages, exact \
MaxSim), before and after training:

| dim | bytes a token (float16) | start | trained | change |
|--:|--:|--:|--:|--:|
{rows}
![nDCG@10 by dimension]({CURVE})
{_pooled_figures(report)}{added}
The dev set also chose the checkpoint, so results on a test set will be a little lower.
"""


def _pooled_figures(report: TrainingReport) -> str:
    if not report.pooled_after:
        return ""
    rows = "".join(
        f"| {dim} | {factor} | {before[dim]:.4f} | {after:.4f} | {after - report.after[dim]:+.4f} |\n"
        for factor, before in report.pooled_before.items()
        for dim, after in report.pooled_after[factor].items()
    )
    return f"""
With the token vectors of passages pooled (`pool_factor` of a collection):

| dim | pool factor | start | trained | trained, relative to no pooling |
|--:|--:|--:|--:|--:|
{rows}"""


def curve(before: Mapping[int, float], after: Mapping[int, float]) -> str:
    """Return an SVG chart of quality by dimension (and its bytes a token in float16) before and after training."""
    series = {
        label: {f"{dim} ({2 * dim} B)": Interval(value, value, value) for dim, value in sorted(figures.items())}
        for label, figures in (("trained", after), ("start", before))
    }
    return svg(Chart("nDCG@10 by dimension", "nDCG@10, by dimension (bytes a token in float16)", series))
