"""Worker process that measures one cell of the study ``lengths``.

Run it as ``python -m jcv2_plugin.evaluation.study.length_worker FOLDER``. The folder contains ``job.json``. The process
writes ``ready`` when the network is built, and rewrites ``result.json`` after the first pass and after each round of
timing, so that results are kept if it is stopped for taking too long.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from jcv2_plugin.evaluation.study.environment import clock, synchronize
from jcv2_plugin.files import write_atomically

VOCABULARY = 1000
OFFSET = 2  # XLM-RoBERTa's positions start after that of the padding token
ROUNDS = 7
_MIB = 2**20
_SHORT = 16


def main() -> None:
    """Run the job in the given folder."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    device = torch.device(job["network"]["device"])
    own, references = job["variant"], job["references"]
    result: dict[str, Any] = {"outcome": "measured", "rounds": [], "longest": 0.0}

    def keep() -> None:
        write_atomically(folder / "result.json", json.dumps(result))

    with torch.inference_mode():
        run = prepare(job["network"], own, job["seed"])
        run_short = prepare(job["network"], {**own, "tokens": _SHORT, "batch": 1}, job["seed"])
        run_short()
        if device.type == "cuda":
            share = job["memory_mib"] * _MIB / torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, share), device)
        (folder / "ready").touch()
        before = memory_now(device)
        try:
            run()
        except torch.cuda.OutOfMemoryError:
            result["outcome"] = f"over {job['memory_mib']:,} MiB"
            keep()
            return
        peak = memory_peak(device)
        if before is not None and peak is not None:
            result["peak MiB"] = peak / _MIB
            result["pass MiB"] = max(0.0, peak - before) / _MIB
        keep()
        others = {name: prepare(job["network"], variant, job["seed"]) for name, variant in references.items()}
        for other in others.values():
            other()
        end = time.monotonic() + job["seconds"]
        for _ in range(ROUNDS):
            began = time.monotonic()
            row = {"own": timed(run, device), **{name: timed(other, device) for name, other in others.items()}}
            result["rounds"].append(row)
            keep()
            if time.monotonic() + (time.monotonic() - began) > end:
                break


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
        synchronize(device)

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
    if positions == "rotary":
        rope = {"rope_type": "default", "rope_theta": network["rope_theta"]}
        config: Any = JinaEmbeddingsV3Config(**sizes, rope_parameters=rope)
        kind: Any = JinaEmbeddingsV3Model
    else:
        config, kind = XLMRobertaConfig(**sizes), XLMRobertaModel
    dtype = getattr(torch, network["dtype"])
    return kind._from_config(config, attn_implementation=attention, dtype=dtype, add_pooling_layer=False)


def timed(run: Callable[[], None], device: torch.device) -> float:
    """Return the duration of a pass in seconds."""
    synchronize(device)
    start = clock(device)
    run()
    return clock(device) - start


def memory_now(device: torch.device) -> int | None:
    """Return the bytes in use, if known, and reset :func:`memory_peak` where possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    resident = _status("VmRSS")
    if resident is None:
        return _largest_ever()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _largest_ever()
    return resident


def memory_peak(device: torch.device) -> int | None:
    """Return the peak memory in bytes, if known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM") or _largest_ever()


def _status(name: str) -> int | None:
    path = Path("/proc/self/status")
    if not path.is_file():
        return None
    lines = (line.split() for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return next((int(line[1]) * 1024 for line in lines), None)


def _largest_ever() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


if __name__ == "__main__":
    main()
