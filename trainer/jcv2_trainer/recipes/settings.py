"""Settings of encoder training: the fields of the recipes ``pairs``, ``triplets`` and ``train``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from jcv2_trainer.recipes import Recipe


def _split(value: Any) -> Any:
    """Split a flag with several values, such as ``128,64``."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Dims = Annotated[tuple[int, ...], BeforeValidator(_split)]
Weights = Annotated[tuple[float, ...], BeforeValidator(_split)]


class TrainingRecipe(Recipe):
    """Settings of encoder training. The field descriptions are also the flags' help."""

    dims: Dims | None = Field(
        description="Matryoshka dimensions to train, the default one first; heads that the model lacks are added."
    )
    heads: Literal["untied", "tied"] = Field(
        description="'untied': a matrix for each dimension. 'tied': each is a prefix of the largest (MRL-E)."
    )
    head_weights: Weights | None = Field(
        description="Weight of each dimension's loss, in the order of dims; equal if not given."
    )
    negatives: int = Field(
        ge=0, description="Hard negatives to take from each row, at most; drawn anew each epoch if it has more."
    )
    contrastive_weight: float = Field(ge=0, description="Weight of InfoNCE with in-batch negatives.")
    symmetric: bool = Field(description="InfoNCE from passages to queries too, as for pairs.")
    distillation_weight: float = Field(
        ge=0, description="Weight of the KL divergence to the teacher's scores, where a row has any."
    )
    scale: float | None = Field(
        gt=0,
        description="Factor on MaxSim scores before a softmax (1 / temperature); if not given, twice that of the "
        "start's least loss.",
    )
    teacher_temperature: float = Field(gt=0, description="Divides the teacher's scores before their softmax.")
    document_length: int | None = Field(
        ge=3, description="Tokens a passage is cut to in training; the model's own if not given."
    )
    batch_size: int = Field(ge=1, description="Rows a step on each device.")
    tokens_per_batch: int | None = Field(
        ge=16, description="Padded tokens a forward pass: less saves memory if cached, and time on a CPU."
    )
    cached: bool = Field(
        description="Gradient caching (GradCache): memory no longer grows with the batch, at a third more time."
    )
    epochs: float = Field(gt=0, description="Passes over the rows.")
    max_steps: int | None = Field(ge=1, description="Stop after so many steps, whatever the epochs.")
    learning_rate: float = Field(gt=0, description="Of the backbone, or of its LoRA matrices.")
    head_learning_rate: float = Field(gt=0, description="Of the heads.")
    weight_decay: float = Field(ge=0, description="AdamW's.")
    warmup: float = Field(ge=0, lt=1, description="Share of the steps in which the rates rise.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        description="How the rates fall after it: linear, cosine or constant."
    )
    max_grad_norm: float = Field(gt=0, description="Gradients are scaled down to this norm.")
    freeze_backbone: bool = Field(description="Train the heads only.")
    lora: bool = Field(
        description="Train low-rank matrices (LoRA) instead of the backbone's own, and merge them at the end."
    )
    lora_rank: int = Field(ge=1, description="Rank of LoRA's matrices; alpha is the same.")
    lora_dropout: float = Field(ge=0, lt=1, description="Dropout before LoRA's matrices.")
    interpolation: float = Field(
        gt=0,
        le=1,
        description="How far from the start to the trained weights the result goes (WiSE-FT); below 1 it forgets less.",
    )
    bf16: bool | None = Field(description="Compute in bfloat16; if not given, where the device is a GPU that can.")
    accumulate: int = Field(ge=1, description="Batches whose gradients are added up for a step.")
    gradient_checkpointing: bool = Field(
        description="Compute activations twice to hold fewer: less memory, a third more time."
    )
    dev_share: float = Field(
        ge=0, lt=0.5, description="Share of the rows set aside as dev set, if no --dev is given; 0: none."
    )
    dev_size: int = Field(ge=1, description="Rows set aside, at most.")
    evaluations: int = Field(ge=1, description="Evaluations on the dev set in a run, each followed by a checkpoint.")
    patience: int = Field(
        ge=0, description="Stop after so many evaluations without a better nDCG@10 on the dev set; 0: never."
    )
    log_every: int = Field(ge=1, description="Steps between log lines.")
    seed: int = Field(ge=0, description="Of the order of rows, the drawing of negatives and dropout.")
    keep_checkpoints: int = Field(ge=1, description="Checkpoints kept in the run's folder while it lasts.")

    @model_validator(mode="after")
    def _fit_together(self) -> TrainingRecipe:
        if self.contrastive_weight == 0 and self.distillation_weight == 0:
            raise ValueError("contrastive_weight and distillation_weight are both 0, so there is nothing to train on")
        if self.dims is not None and (not self.dims or min(self.dims) < 1 or len(set(self.dims)) != len(self.dims)):
            raise ValueError(f"dims must be distinct positive integers, got {list(self.dims)}")
        if self.head_weights is not None:
            if self.dims is None or len(self.dims) != len(self.head_weights):
                raise ValueError("head_weights needs dims, and as many of them")
            if min(self.head_weights) < 0 or max(self.head_weights) == 0:
                raise ValueError(f"head_weights must not be negative or all 0, got {list(self.head_weights)}")
        if self.lora and self.freeze_backbone:
            raise ValueError("lora and freeze_backbone exclude each other; give --no-lora to train the heads only")
        return self
