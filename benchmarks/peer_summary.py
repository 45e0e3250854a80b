"""The short tables of what ``benchmarks/peers.py`` measured, for the README: ours beside each peer, losses too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peer_bench import OURS
from peer_tables import MIB, table

_ENCODERS = ("sentence-transformers", "pylate", "fastembed")
_STORES = ("qdrant-local", "qdrant-local, on disk", "fast-plaid")


def summary(report: Mapping[str, Any]) -> str:
    """How many times faster ours is than each peer, at the peer's default and at the best of its batch sizes."""
    tasks = report["tasks"]
    rows = []
    for over, name in (("over_ours", ""), ("over_int8", ", ours in eight bits")):
        for kind in dict.fromkeys(row["kind"] for row in tasks["encode"]):
            measured = [row for row in tasks["encode"] if row["kind"] == kind and row[over] is not None]
            cells = [_default_and_best(measured, peer, over) for peer in _ENCODERS]
            rows.append([f"documents: {kind}{name}", *cells])
    for over, name in (("single_over_ours", ""), ("single_over_int8", ", ours in eight bits")):
        rows.append([f"one query{name}", *(_cell(tasks["query"], peer, over) for peer in _ENCODERS)])
    ways = {row["engine"].partition(" + ")[0]: row for row in tasks["index"]}
    rows.append(["texts to an index", *(_ratio(ways.get(peer), "over_ours") for peer in _ENCODERS)])
    rows.append(["training step", *(_cell(tasks["train"], peer, "over_ours") for peer in _ENCODERS)])
    kept = [row for row in rows if any(row[1:])]
    return table(["ours is faster by", "sentence-transformers", "PyLate", "fastembed"], kept)


def search_summary(report: Mapping[str, Any]) -> str:
    """Searching, storing and bytes, beside each store, for every number of documents."""
    measured = report["tasks"]["search"]
    rows = []
    for number in dict.fromkeys(row["documents"] for row in measured):
        here = [row for row in measured if row["documents"] == number]
        ours = _default(here, OURS)
        for name in _STORES:
            other = _default(here, name)
            if ours is None or other is None:
                continue
            rows.append(
                [
                    f"{number:,}",
                    name,
                    f"{other['over_ours']['clock']['median']:.1f}",
                    f"{ours['recall@10']:.3f} / {other['recall@10']:.3f}",
                    f"{other['store_over_ours']:.1f}",
                    f"{other['whole_over_ours']:.1f}",
                    f"{ours['bytes'] / MIB:,.0f} / {other['bytes'] / MIB:,.0f}" if other["bytes"] else "",
                ]
            )
    head = ["documents", "beside", "a search is faster by", "recall@10, ours / theirs", "storing is faster by"]
    return table([*head, "storing, opening and 100 searches", "MiB on disk, ours / theirs"], rows, text_columns=2)


def _default(rows: Sequence[Mapping[str, Any]], engine: str) -> Mapping[str, Any] | None:
    return next((row for row in rows if row["engine"] == engine and row["effort"] is None), None)


def _default_and_best(rows: Sequence[Mapping[str, Any]], engine: str, over: str) -> str:
    found = [_ratio(row, over) for row in rows if row["engine"] == engine]  # the default is measured first
    return " / ".join(found)


def _cell(rows: Sequence[Mapping[str, Any]], engine: str, over: str) -> str:
    return _ratio(next((row for row in rows if row["engine"] == engine), None), over)


def _ratio(row: Mapping[str, Any] | None, over: str) -> str:
    return "" if row is None or row.get(over) is None else f"{row[over]['clock']['median']:.2f}"
