"""Settings of masked-language training: the fields of the recipe ``mlm``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jcv2_trainer.recipes import Recipe


class MlmRecipe(Recipe):
    """Settings of masked-language training. The field descriptions are also the flags' help."""

    mask_share: float = Field(gt=0, lt=1, description="Share of the words that are masked, drawn anew each epoch.")
    whole_word: bool = Field(description="Mask all tokens of a word together, instead of single tokens.")
    sequence_length: int = Field(
        ge=8, description="Tokens per sequence. Texts are packed into sequences without padding."
    )
    batch_size: int = Field(ge=1, description="Sequences per step on each device.")
    accumulate: int = Field(ge=1, description="Batches per step, whose gradients are added up.")
    epochs: float = Field(gt=0, description="Passes over the texts.")
    max_steps: int | None = Field(ge=1, description="Stop after this many steps, regardless of the epochs.")
    learning_rate: float = Field(gt=0, le=1, description="Highest learning rate, reached after the warm-up.")
    weight_decay: float = Field(ge=0, le=1, description="Weight decay of AdamW.")
    warmup: float = Field(ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        description="How the learning rate falls after the warm-up: linear, cosine or constant."
    )
    max_grad_norm: float = Field(gt=0, description="Highest norm of the gradients. Larger ones are scaled down.")
    bf16: bool | None = Field(description="Compute in bfloat16. By default if the GPU supports it.")
    gradient_checkpointing: bool = Field(
        description="Compute activations twice instead of storing them: less memory, a third more time."
    )
    dev_share: float = Field(gt=0, lt=0.5, description="Share of the sequences to hold out and measure the loss on.")
    dev_size: int = Field(ge=1, description="Largest number of sequences to hold out.")
    save_every: int = Field(ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(ge=1, description="Checkpoints to keep in the run's folder during training.")
    log_every: int = Field(ge=1, description="Steps between log lines.")
    seed: int = Field(ge=0, lt=2**32, description="Seed of the order, the masks, dropout and the held-out sequences.")
