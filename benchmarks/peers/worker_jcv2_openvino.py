"""This project's encoder with ``query_engine="openvino"``: single queries by OpenVINO, in float32."""

from __future__ import annotations

import torch
from worker import serve
from worker_jcv2 import Jcv2

from jcv2_plugin import JinaColbertEncoder


class OpenVino(Jcv2):
    packages = ("openvino",)

    def load(self, model: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        if model is not None:
            self.encoder = JinaColbertEncoder.from_pretrained(model, device="cpu", query_engine="openvino")


if __name__ == "__main__":
    serve(OpenVino())
