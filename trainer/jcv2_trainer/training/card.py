"""Write the model card of a trained model, with a chart of quality by dimension."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from jcv2_trainer.training.report import TrainingReport

CURVE = "curve.svg"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 640, 360, 64, 24, 40, 64


def write_card(folder: Path, report: TrainingReport) -> None:
    """Write ``README.md`` and, if there is a dev set, ``curve.svg`` to a model folder."""
    if report.after:
        (folder / CURVE).write_text(curve(report.before, report.after), encoding="utf-8")
    (folder / "README.md").write_text(card(report), encoding="utf-8")


def card(report: TrainingReport) -> str:
    """Return the model card as Markdown: data, recipe, results by dimension, and how to load the model."""
    lines = [
        "---",
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "tags:",
        "- sentence-transformers",
        "- multi-vector",
        "- ColBERT",
        "- late-interaction",
        f"base_model: {report.model}",
        "---",
        "",
        f"# Late-interaction retriever, finetuned from {report.model}",
        "",
        "Trained with `jcv2-finetune` of jcv2-plugin: one linear head for each Matryoshka dimension, MaxSim scoring.",
        "",
    ]
    if not report.finished:
        lines += [f"**Unfinished**: stopped after {report.steps:,} steps.", ""]
    lines += _figures(report) + _use(report) + _data(report) + _recipe(report)
    return "\n".join(lines) + "\n"


def _figures(report: TrainingReport) -> list[str]:
    if not report.after:
        return ["## Quality", "", "Not measured: there was no dev set.", ""]
    rows = [
        f"| {dim} | {2 * dim} | {report.before[dim]:.4f} | {after:.4f} | {after - report.before[dim]:+.4f} |"
        for dim, after in report.after.items()
    ]
    return [
        "## Quality",
        "",
        f"nDCG@10 on the dev set ({report.dev['queries']:,} queries, {report.dev['documents']:,} passages, exact "
        "MaxSim), before and after training:",
        "",
        "| dim | bytes a token (float16) | start | trained | change |",
        "|--:|--:|--:|--:|--:|",
        *rows,
        "",
        f"![nDCG@10 by dimension]({CURVE})",
        "",
        *(
            [f"Heads added in this training: {', '.join(map(str, report.added_dims))}.", ""]
            if report.added_dims
            else []
        ),
        "The dev set also chose the checkpoint, so a test set of your own will show a little less.",
        "",
    ]


def _use(report: TrainingReport) -> list[str]:
    dim = next(iter(report.after), None)
    argument = "" if dim is None else f", dim={dim}"
    return [
        "## Use",
        "",
        "```python",
        "from jcv2_plugin import JinaColbertEncoder",
        "",
        'encoder = JinaColbertEncoder.from_pretrained("path/to/this/folder")',
        f'query = encoder.encode_query("..."{argument})',
        "```",
        "",
        "`encoder.export(folder, dim=...)` writes one head in the layout that sentence-transformers and PyLate read.",
        "",
    ]


def _data(report: TrainingReport) -> list[str]:
    data = report.data
    facts = [
        f"- files: {', '.join(f'`{name}`' for name in data['files'])}",
        f"- rows trained on: {report.rows:,} ({data['with_negatives']:,} with negatives, {data['with_scores']:,} with "
        "a teacher's scores)",
        f"- languages: {', '.join(name or '(none given)' for name in data['languages'])}",
        f"- sources: {', '.join(name or '(none given)' for name in data['sources'])}",
    ]
    facts += [f"- left out, {reason}: {count:,} rows" for reason, count in report.skipped.items()]
    return ["## Data", "", *facts, ""]


def _recipe(report: TrainingReport) -> list[str]:
    fields = [f"{name}: {'null' if value is None else value}" for name, value in report.recipe.items()]
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return [
        "## Recipe",
        "",
        f"`jcv2-finetune {report.stage}`, {report.steps:,} steps.",
        "",
        "```yaml",
        *fields,
        "```",
        "",
        f"Versions: {versions}.",
    ]


def curve(before: Mapping[int, float], after: Mapping[int, float], title: str = "nDCG@10 by dimension") -> str:
    """Return an SVG chart of quality by dimension before and after training, with dimensions evenly spaced."""
    dims = sorted(after)
    values = [*before.values(), *after.values()]
    low, high = min(values), max(values)
    margin = max((high - low) * 0.15, 0.005)
    low, high = low - margin, min(1.0, high + margin)

    def x(dim: int) -> float:
        if len(dims) == 1:
            return (_LEFT + _WIDTH - _RIGHT) / 2
        share = dims.index(dim) / (len(dims) - 1)
        return _LEFT + 24 + share * (_WIDTH - _LEFT - _RIGHT - 48)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{escape(title)}">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    for step in range(5):
        value = low + (high - low) * step / 4
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        )
        parts.append(f'<text x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3f}</text>')
    for dim in dims:
        parts.append(f'<text x="{x(dim):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{dim}</text>')
        parts.append(
            f'<text x="{x(dim):.1f}" y="{_HEIGHT - _BOTTOM + 36}" text-anchor="middle" fill="#666">{2 * dim} B</text>'
        )
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">dimension, and bytes a token in float16</text>'
    )
    for label, figures, colour, index in (("start", before, "#999999", 0), ("trained", after, "#0b6e4f", 1)):
        points = [(x(dim), y(figures[dim])) for dim in dims if dim in figures]
        if not points:
            continue
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="4" fill="{colour}"/>' for left, top in points]
        legend = _WIDTH - _RIGHT - 160 + 80 * index
        parts.append(
            f'<circle cx="{legend}" cy="18" r="4" fill="{colour}"/><text x="{legend + 8}" y="22">{label}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
