"""A network from ids and mask to token states or vectors, as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import torch


def export_onnx(network: torch.nn.Module, file: Path) -> None:
    """Write ``network(input_ids, attention_mask)``, in float32, for any number of texts and tokens."""
    example = (torch.ones(2, 16, dtype=torch.int64), torch.ones(2, 16, dtype=torch.int64))
    axes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    with torch.inference_mode():
        torch.onnx.export(
            network.eval(),
            example,
            str(file),
            input_names=["input_ids", "attention_mask"],
            output_names=["output"],
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            external_data=False,
            dynamo=True,
        )
