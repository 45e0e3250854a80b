"""Turn what benchmarks/compression.py measured into the sizes that ``jcv2 plan`` adds up.

python benchmarks/compression.py --dims 128 64 --pool-factors 1
python benchmarks/plan_constants.py
"""

from __future__ import annotations

import json
from typing import Any

from compression import OUTPUT
from encoded import ROOT, say

TARGET = ROOT / "jcv2_plugin" / "measured.json"


def line(points: dict[int, float]) -> dict[str, float]:
    """Bytes as a multiple of the dim and a rest, through the smallest and the largest dim."""
    low, high = min(points), max(points)
    per_dim = (points[high] - points[low]) / (high - low)
    return {"per_dim": round(per_dim, 4), "fixed": round(points[low] - per_dim * low, 2)}


def main() -> None:
    report = json.loads(OUTPUT.read_text(encoding="utf-8"))
    rows = [row for row in report["rows"] if row["pool_factor"] == 1]
    largest = max(rows, key=lambda row: row["tokens"])["set"]
    chosen = [row for row in rows if row["set"] == largest]
    by_storage: dict[str, dict[int, dict[str, Any]]] = {}
    for row in chosen:
        by_storage.setdefault(row["storage"], {})[row["dim"]] = row

    def each(storage: str, names: list[str], count: str) -> dict[int, float]:
        return {
            dim: sum(row["parts"].get(name, 0) for name in names) / row[count]
            for dim, row in by_storage[storage].items()
        }

    token_vectors = ["vector_storage-colbert"]
    constants = {
        "vector_bytes": {
            storage: line(each(storage, token_vectors, "tokens"))
            for storage in ("float32", "float16", "turbo8", "turbo4")
        },
        "int8_copy_bytes": line(each("int8", ["quantized"], "tokens")),
        "dense_bytes": line(each("float16", ["vector_storage-pooled", "vector_index-pooled"], "documents")),
        "bm25_bytes_a_token": round(
            min(each("float16", ["vector_storage-bm25", "vector_index-bm25"], "tokens").values()), 2
        ),
        "payload_bytes_a_token": round(min(each("float16", ["payload_storage"], "tokens").values()), 2),
        "id_bytes": round(min(each("float16", ["id_tracker"], "documents").values()), 1),
    }
    source = {key: report[key] for key in ("command", "versions", "machine")}
    source["set"] = f"{largest}: {chosen[0]['documents']} documents, {chosen[0]['tokens']} tokens"
    TARGET.write_text(json.dumps({**constants, "source": source}, indent=2) + "\n", encoding="utf-8")
    say(f"Written to {TARGET}")


if __name__ == "__main__":
    main()
