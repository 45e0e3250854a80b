"""sentence-transformers' ``MultiVectorEncoder`` and its trainer, by their defaults."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import (
    MultiVectorEncoder,
    MultiVectorEncoderTrainer,
    MultiVectorEncoderTrainingArguments,
)
from sentence_transformers.multi_vector_encoder.losses import MultiVectorMultipleNegativesRankingLoss
from training import by_column, losses_of, trainer_settings, without_dropout
from worker import Engine, serve


class SentenceTransformers(Engine):
    packages = ("sentence-transformers", "transformers", "torch")
    model: MultiVectorEncoder

    def load(self, model: str | None, threads: int) -> None:
        torch.set_num_threads(threads)
        if model is not None:
            self.model = MultiVectorEncoder(model, device="cpu")

    def encode(self, texts: list[str], role: str, batch: int | None) -> Any:
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        return encode(texts, **({} if batch is None else {"batch_size": batch}))

    def train(self, model: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[float]:
        trainer = make_trainer(model, rows, settings)
        trainer.train()
        return losses_of(trainer)


def make_trainer(model: str, rows: list[dict[str, Any]], settings: dict[str, Any]) -> MultiVectorEncoderTrainer:
    """Their trainer for triplets, with InfoNCE over all passages of the batch.

    It leaves out the model's markers where it is not told of them.
    """
    encoder = MultiVectorEncoder(model, device="cpu")
    without_dropout(encoder)
    data = by_column(rows, settings)
    arguments = MultiVectorEncoderTrainingArguments(
        **trainer_settings(settings),
        max_length={"document": settings["document_length"]},
        prompts={
            name: encoder.prompts.get("query" if name == "query" else "document") or "" for name in data.column_names
        },
    )
    return MultiVectorEncoderTrainer(
        model=encoder,
        args=arguments,
        train_dataset=data,
        loss=MultiVectorMultipleNegativesRankingLoss(encoder),
    )


if __name__ == "__main__":
    serve(SentenceTransformers())
