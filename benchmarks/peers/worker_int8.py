"""This project's encoder with its backbone in eight bits, by OpenVINO; calibrated and saved once, beside the model."""

from __future__ import annotations

from pathlib import Path

import torch
from worker import serve
from worker_jcv2 import Jcv2

from jcv2_plugin import JinaColbertEncoder, quantize

_SAMPLES = 100


class Int8(Jcv2):
    packages = ("openvino", "nncf")

    def load(self, model: str | None, threads: int) -> None:
        import peer_texts  # found by worker_jcv2

        torch.set_num_threads(threads)
        if model is None:
            return
        folder = Path(f"{model}-int8")
        if not folder.exists():
            texts = peer_texts.docstrings()[-_SAMPLES:]  # documents are taken from the front
            quantize(JinaColbertEncoder.from_pretrained(model, device="cpu"), texts).save_pretrained(str(folder))
        self.encoder = JinaColbertEncoder.from_pretrained(folder, device="cpu")


if __name__ == "__main__":
    serve(Int8())
