"""Write the model card of a trained model, with a chart of quality by dimension."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from jcv2_plugin.console import name
from jcv2_trainer.training.report import TrainingReport

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

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 360, 64, 24, 40, 64


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


def curve(before: Mapping[int, float], after: Mapping[int, float], title: str = "nDCG@10 by dimension") -> str:
    """Return an SVG chart of quality by dimension before and after training, with dimensions evenly spaced."""
    dims = sorted(after)
    values = [*before.values(), *after.values()]
    margin = max((max(values) - min(values)) * 0.15, 0.005)
    low, high = min(values) - margin, min(1.0, max(values) + margin)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    step = (_WIDTH - _LEFT - _RIGHT - 48) / max(1, len(dims) - 1)
    x = {dim: _LEFT + 24 + number * step if len(dims) > 1 else middle for number, dim in enumerate(dims)}

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    def text(left: float, top: float, words: str, more: str = 'text-anchor="middle"') -> str:
        return f'<text x="{left:.1f}" y="{top:.1f}" {more}>{escape(words)}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        text(_LEFT, 22, title, 'font-size="15" font-weight="bold"'),
        text(middle, _HEIGHT - 8, "dimension, and bytes a token in float16"),
    ]
    for value in (low + (high - low) * share / 4 for share in range(5)):
        ends = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"'
        parts += [f'<line {ends} stroke="#ddd"/>', text(_LEFT - 8, y(value) + 4, f"{value:.3f}", 'text-anchor="end"')]
    for dim in dims:
        parts += [text(x[dim], _HEIGHT - _BOTTOM + 20, f"{dim}"), text(x[dim], _HEIGHT - _BOTTOM + 36, f"{2 * dim} B")]
    for label, figures, colour, legend in (("start", before, "#999999", 456), ("trained", after, "#0b6e4f", 536)):
        points = [(x[dim], y(figures[dim])) for dim in dims if dim in figures]
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        dots = [*points, (legend, 18.0)] if points else []
        parts += [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="{colour}"/>' for left, top in dots]
        parts.append(text(legend + 8, 22, label, ""))
    return "\n".join([*parts, "</svg>"]) + "\n"
