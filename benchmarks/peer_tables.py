"""The tables of what ``benchmarks/peers.py`` measured, for its output and for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

MIB = 1 << 20
_LARGE_DIFFERENCE = 1e-4


def encode(report: dict[str, Any]) -> str:
    """Documents a second, by kind of text."""
    rows = [
        [
            f"{row['kind']} ({row['documents']} x {row['tokens']['median']:.0f})",
            row["engine"],
            "default" if row["batch"] is None else f"{row['batch']} (its best)",
            f"{row['documents_per_second']['median']:.1f}",
            ratio(row["over_ours"]["clock"]),
            f"{row['over_ours']['processor']['median']:.2f}",
            f"{row['peak_bytes'] / MIB:,.0f}",
            difference(row["difference"]),
        ]
        for row in report["tasks"]["encode"]
    ]
    head = ["documents (tokens, median)", "engine", "batch", "documents/s", "ours is faster by", "processor time"]
    return table([*head, "peak MiB", "largest difference"], rows, text_columns=3)


def query(report: dict[str, Any]) -> str:
    """Latency of one query, and queries a second in bulk."""
    # Earlier reports lack it, and so do those of machines without OpenVINO.
    with_openvino = all(row.get("single_over_openvino") for row in report["tasks"]["query"])
    rows = [
        [
            row["engine"],
            f"{row['milliseconds']['median']:.1f}",
            f"{row['single_over_ours']['clock']['median']:.2f}",
            *([f"{row['single_over_openvino']['clock']['median']:.2f}"] if with_openvino else []),
            f"{row['queries_per_second']['median']:.0f}",
            ratio(row["bulk_over_ours"]["clock"]),
            difference(row.get("single_difference", row["difference"])),
        ]
        for row in report["tasks"]["query"]
    ]
    openvino = ["ours with OpenVINO is faster by"] if with_openvino else []
    head = ["engine", "one query, ms", "ours is faster by", *openvino, "in bulk, queries/s", "ours is faster by"]
    return table([*head, "largest difference"], rows)


def index(report: dict[str, Any]) -> str:
    """From texts to an index."""
    rows = [
        [
            row["engine"],
            f"{row['documents_per_second']['median']:.1f}",
            ratio(row["over_ours"]["clock"]),
            f"{row['over_ours']['processor']['median']:.2f}",
            size(row["bytes"]),
        ]
        for row in report["tasks"]["index"]
    ]
    return table(["engine", "documents/s", "ours is faster by", "processor time", "on disk"], rows)


def search(report: dict[str, Any]) -> str:
    """Recall and time of each engine at each of its settings."""
    rows = [
        [
            f"{row['documents']:,}",
            row["engine"],
            effort(row["effort"]),
            f"{row['recall@10']:.3f}",
            f"{row['milliseconds']['median']:.2f}",
            f"{row['over_ours']['clock']['median']:.2f}",
        ]
        for row in report["tasks"]["search"]
    ]
    return table(["documents", "engine", "setting", "recall@10", "ms", "ours is faster by"], rows, text_columns=3)


def store(report: dict[str, Any]) -> str:
    """Time, bytes and memory of storing, with and without searches; at each engine's default."""
    rows = [
        [
            f"{row['documents']:,}",
            row["engine"],
            f"{row['store_seconds']:.2f}",
            f"{row['store_over_ours']:.2f}",
            f"{row['opening_seconds']:.2f}",
            f"{row['whole_over_ours']:.1f}",
            size(row["bytes"]),
            f"{row['bytes'] / row['vectors']:.0f}" if row["bytes"] else "",
            f"{row['peak_bytes'] / MIB:,.0f}",
        ]
        for row in report["tasks"]["search"]
        if row["effort"] is None
    ]
    head = [
        "documents",
        "engine",
        "storing, s",
        "ours is faster by",
        "opening, s",
        "all and 100 searches: ours is faster by",
    ]
    return table([*head, "on disk", "bytes a vector", "peak MiB"], rows, text_columns=2)


def equal_recall(report: dict[str, Any]) -> str:
    """Each setting of another engine beside our fastest search that finds as much."""
    rows = []
    measured = report["tasks"]["search"]
    for row in measured:
        ours = [
            one
            for one in measured
            if one["engine"] == "jcv2" and one["documents"] == row["documents"] and one["recall@10"] >= row["recall@10"]
        ]
        if row["engine"].startswith("jcv2") or not ours:
            continue
        best = min(ours, key=lambda one: one["milliseconds"]["median"])
        rows.append(
            [
                f"{row['documents']:,}",
                row["engine"],
                effort(row["effort"]),
                f"{row['recall@10']:.3f}",
                effort(best["effort"]),
                f"{best['recall@10']:.3f}",
                f"{row['over_ours']['clock']['median'] / best['over_ours']['clock']['median']:.2f}",
            ]
        )
    head = ["documents", "engine", "setting", "recall@10", "our setting", "our recall@10", "ours is faster by"]
    return table(head, rows, text_columns=3)


def train(report: dict[str, Any]) -> str:
    """Triplets a second."""
    rows = [
        [
            row["engine"],
            f"{row['triplets_per_second']['median']:.2f}",
            ratio(row["over_ours"]["clock"]),
            f"{row['over_ours']['processor']['median']:.2f}",
            f"{row['peak_bytes'] / MIB:,.0f}",
            f"{row['loss_difference']:.0e}",
        ]
        for row in report["tasks"]["train"]
    ]
    return table(
        ["trainer", "triplets/s", "ours is faster by", "processor time", "peak MiB", "difference of losses"], rows
    )


def int8(report: dict[str, Any]) -> str:
    """What ``benchmarks/int8.py`` measured: a row for each backend, the first being what the others are held to."""
    quality = report["ndcg@10"]
    base = quality[next(iter(quality))]
    head = ["backbone run by", *(f"documents/s, {kind}" for kind in report["speed"]), "least cosine"]
    rows = []
    for name, reached in quality.items():
        parts = [part[name] for part in report["speed"].values()]
        rows.append(
            [
                name,
                *(f"{part['base_over_this']['clock']['median']:.2f}x" for part in parts),
                f"{min(part['least_cosine'] for part in parts):.3f}",
                *(f"{value:.4f} ({value - base[key]:+.4f})" for key, value in reached.items()),
            ]
        )
    return table([*head, *(f"nDCG@10 {key}" for key in base)], rows)


def left_out(report: dict[str, Any]) -> str:
    """What a peer could not do here, and why."""
    if not report["unavailable"]:
        return "No peer had to be left out."
    return "\n".join(f"- {what}: {reason.splitlines()[-1]}" for what, reason in report["unavailable"].items())


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "encode": encode,
    "query": query,
    "index": index,
    "search": lambda report: "\n\n".join(part(report) for part in (store, search, equal_recall)),
    "train": train,
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A Markdown table, numbers to the right."""
    rule = ["---"] * text_columns + ["--:"] * (len(head) - text_columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *rows])


def ratio(values: dict[str, float]) -> str:
    """A median with its spread."""
    return f"{values['median']:.2f} ({values['low']:.2f} to {values['high']:.2f})"


def difference(value: float | str) -> str:
    """How unlike vectors are; a text says why they cannot be compared."""
    if isinstance(value, str):
        return value
    return f"{value:.0e}" + (" (!)" if value > _LARGE_DIFFERENCE else "")


def size(value: int) -> str:
    """Bytes on disk; none are kept in memory only."""
    return f"{value / MIB:,.1f} MiB" if value else "(memory)"


def effort(value: Any) -> str:
    """A search's setting."""
    if value is None:
        return "default"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number}" for key, number in value.items())
    return value if isinstance(value, str) else f"{value} candidates"
