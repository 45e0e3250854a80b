"""Worker process that measures one cell of the study ``lengths``.

``python -m jcv2_plugin.evaluation.study.length_worker`` reads a job as JSON and prints its result as JSON, again after
the first pass and each round of timing. The last line holds, also if the process is stopped.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from jcv2_plugin.evaluation.study.environment import clock

VOCABULARY = 1000
OFFSET = 2  # XLM-RoBERTa's positions start after that of the padding token
ROUNDS = 7
_MIB = 2**20
_POLL_SECONDS = 0.01


def main() -> None:
    """Run the job given on standard input."""
    job = json.load(sys.stdin)
    result: dict[str, Any] = {"outcome": "measured", "rounds": []}
    ready = threading.Event()
    threading.Thread(target=_watch, args=(job, result, ready), daemon=True).start()
    try:
        with torch.inference_mode():
            _measure(job, result, ready)
    except torch.cuda.OutOfMemoryError:
        result["outcome"] = f"over {job['memory_mib']:,} MiB"
    _say(result)


def _measure(job: Mapping[str, Any], result: dict[str, Any], ready: threading.Event) -> None:
    network, own, device = job["network"], job["variant"], torch.device(job["network"]["device"])
    run = prepare(network, own, job["seed"])
    prepare(network, {**own, "tokens": 16, "batch": 1}, job["seed"])()  # to load kernels
    if device.type == "cuda":
        share = job["memory_mib"] * _MIB / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
    ready.set()
    before = memory(device)
    run()
    peak = memory(device, peak=True)
    if before is not None and peak is not None:
        result |= {"peak MiB": peak / _MIB, "pass MiB": max(0.0, (peak - before) / _MIB)}
    _say(result)
    runs = {"own": run, **{name: prepare(network, one, job["seed"]) for name, one in job["references"].items()}}
    for other in runs.values():
        other()
    end = time.monotonic() + job["seconds"]
    for _ in range(ROUNDS):
        began = time.monotonic()
        result["rounds"] = [*result["rounds"], {name: timed(one, device) for name, one in runs.items()}]
        _say(result)
        if 2 * time.monotonic() - began > end:
            break


def _say(result: Mapping[str, Any]) -> None:
    os.write(1, json.dumps(result).encode() + b"\n")


def _watch(job: Mapping[str, Any], result: Mapping[str, Any], ready: threading.Event) -> None:
    """End the process when it takes too much memory, or too long after it is ready."""
    end, over, on_cpu = float("inf"), None, job["network"]["device"] == "cpu" and Path("/proc/self/statm").exists()
    while over is None:
        time.sleep(_POLL_SECONDS)
        if end == float("inf") and ready.is_set():
            end = time.monotonic() + job["limit"]
        if time.monotonic() > end:
            over = f"over {job['limit']:g} s"
        elif on_cpu and int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > (
            job["memory_mib"] * _MIB
        ):
            over = f"over {job['memory_mib']:,} MiB"
    # If the memory was measured, but timing took too long, keep what there is.
    _say(result if result["rounds"] else {**result, "outcome": over})
    os._exit(0)


def prepare(network: Mapping[str, Any], variant: Mapping[str, Any], seed: int) -> Callable[[], None]:
    """Return a function that passes one batch of random tokens through a random network, both fixed by the seed."""
    device = torch.device(network["device"])
    torch.manual_seed(seed)
    model = build(network, str(variant["positions"]), str(variant["attention"])).to(device).eval()
    shape = (int(variant["batch"]), int(variant["tokens"]))
    ids = torch.randint(5, VOCABULARY, shape).to(device)
    mask = torch.ones(shape, dtype=torch.long, device=device)

    def run() -> None:
        model(input_ids=ids, attention_mask=mask)

    return run


def build(network: Mapping[str, Any], positions: str, attention: str) -> Any:
    """Build the backbone of jina-colbert-v2 (rotary) or XLM-RoBERTa (absolute), of equal size, with random weights."""
    from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model, XLMRobertaConfig, XLMRobertaModel

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": network["hidden"],
        "num_hidden_layers": network["layers"],
        "num_attention_heads": network["heads"],
        "intermediate_size": 4 * network["hidden"],
        "max_position_embeddings": network["longest"] + OFFSET,
        "type_vocab_size": 1,
        "pad_token_id": 1,
    }
    kind: Any = XLMRobertaModel
    if positions == "rotary":
        rope = {"rope_type": "default", "rope_theta": network["rope_theta"]}
        config: Any = JinaEmbeddingsV3Config(**sizes, rope_parameters=rope)
        kind = JinaEmbeddingsV3Model
    else:
        config = XLMRobertaConfig(**sizes)
    dtype = getattr(torch, network["dtype"])
    return kind._from_config(config, attn_implementation=attention, dtype=dtype, add_pooling_layer=False)


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Return the duration of a pass in seconds."""
    start = clock(device)
    run()
    return clock(device) - start


def memory(device: torch.device, *, peak: bool = False) -> int | None:
    """Return the bytes in use, or the most since that was asked (if it can be reset; else ever), if known."""
    if device.type == "cuda":
        if peak:
            return int(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:
        if not peak:
            Path("/proc/self/clear_refs").write_text("5")
        found = re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s*(\d+)", Path("/proc/self/status").read_text())
        return 1024 * int(found[1]) if found else None
    except OSError:
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


if __name__ == "__main__":
    main()
