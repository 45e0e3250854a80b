"""fast-plaid: PLAID's residual codes behind an inverted file of centroids, by its defaults (4 bits)."""

from __future__ import annotations

from typing import Any

import torch
from fast_plaid.search import FastPlaid
from worker import Engine, Matrix, serve


class FastPlaidIndex(Engine):
    packages = ("fast-plaid", "torch")
    index: FastPlaid

    def load(self, model: str | None, threads: int) -> None:
        torch.set_num_threads(threads)

    def store(self, vectors: list[Matrix], texts: list[str], folder: str, options: dict[str, Any]) -> None:
        self.folder = folder
        self.reopen()
        self.index.create([torch.from_numpy(one) for one in vectors], **options)

    def reopen(self) -> None:
        self.index = FastPlaid(index=self.folder, device="cpu")

    def search(self, vectors: Matrix, text: str, k: int, effort: dict[str, int] | None) -> list[int]:
        found = self.index.search([torch.from_numpy(vectors)], top_k=k, show_progress=False, **(effort or {}))
        return [int(position) for position, _ in found[0]]


if __name__ == "__main__":
    serve(FastPlaidIndex())
