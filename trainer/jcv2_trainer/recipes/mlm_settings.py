"""Settings of masked-language training: the fields of the recipe ``mlm``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from jcv2_trainer.recipes import Recipe


class MlmRecipe(Recipe):
    """Settings of masked-language training. The field descriptions are also the flags' help."""

    mask_share: float = Field(gt=0, lt=1, description="Share of the words that are masked, drawn anew each epoch.")
    whole_word: bool = Field(description="Mask all tokens of a word together, or else each token by itself.")
    sequence_length: int = Field(
        ge=8, description="Tokens a sequence; texts are packed into such, so that nothing is padded."
    )
    batch_size: int = Field(ge=1, description="Sequences a step on each device.")
    accumulate: int = Field(ge=1, description="Batches whose gradients are added up for a step.")
    epochs: float = Field(gt=0, description="Passes over the texts.")
    max_steps: int | None = Field(ge=1, description="Stop after so many steps, whatever the epochs.")
    learning_rate: float = Field(gt=0, description="The highest, reached after the warm-up.")
    weight_decay: float = Field(ge=0, description="AdamW's.")
    warmup: float = Field(ge=0, lt=1, description="Share of the steps in which the rate rises.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        description="How the rate falls after it: linear, cosine or constant."
    )
    max_grad_norm: float = Field(gt=0, description="Gradients are scaled down to this norm.")
    bf16: bool | None = Field(description="Compute in bfloat16; if not given, where the device is a GPU that can.")
    gradient_checkpointing: bool = Field(
        description="Compute activations twice to hold fewer: less memory, a third more time."
    )
    dev_share: float = Field(gt=0, lt=0.5, description="Share of the sequences held out to measure the loss on.")
    dev_size: int = Field(ge=1, description="Sequences held out, at most.")
    save_every: int = Field(ge=1, description="Steps between checkpoints.")
    keep_checkpoints: int = Field(ge=1, description="Checkpoints kept in the run's folder while it lasts.")
    log_every: int = Field(ge=1, description="Steps between log lines.")
    seed: int = Field(ge=0, description="Of the order of sequences, the masks, dropout and what is held out.")
