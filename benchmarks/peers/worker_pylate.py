"""PyLate's ``ColBERT`` and its contrastive training, by their defaults."""

from __future__ import annotations

from typing import Any

import torch
from pylate import losses, models, utils
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from training import by_column, losses_of, trainer_settings, without_dropout
from worker import Engine, serve


class PyLate(Engine):
    packages = ("pylate", "sentence-transformers", "transformers", "torch")
    model: models.ColBERT

    def load(self, model: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        if model is not None:
            self.model = models.ColBERT(model, device="cpu")

    def encode(self, texts: list[str], role: str, batch: int | None) -> Any:
        size = {} if batch is None else {"batch_size": batch}
        return self.model.encode(texts, is_query=role == "query", show_progress_bar=False, **size)

    def train(self, model: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[float]:
        colbert = models.ColBERT(model, device="cpu", document_length=settings["document_length"])
        without_dropout(colbert)
        trainer = SentenceTransformerTrainer(
            model=colbert,
            args=SentenceTransformerTrainingArguments(**trainer_settings(settings)),
            train_dataset=by_column(rows, settings),
            loss=losses.Contrastive(model=colbert),
            data_collator=utils.ColBERTCollator(colbert.tokenize),
        )
        trainer.train()
        return losses_of(trainer)


if __name__ == "__main__":
    serve(PyLate())
