"""Settings of encoders: how one is assembled and trained (recipes ``train``, ``pairs``, ``triplets``, and ``mlm``)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jcv2_plugin.checks import check_pool_factor
from jcv2_trainer.recipes import Recipe

PAPER_DIMS = (128, 64, 96, 256, 512, 768)
"""The six dimensions of arXiv 2408.16672, the default one first."""


def _split(value: Any) -> Any:
    """Split a flag with several values, such as ``128,64``."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _distinct(dims: tuple[int, ...]) -> tuple[int, ...]:
    if not dims or min(dims) < 1 or len(set(dims)) != len(dims):
        raise ValueError("dims must be distinct positive integers, such as 128,64")
    return dims


def _factors(factors: tuple[float, ...]) -> tuple[float, ...]:
    checked = tuple(map(check_pool_factor, factors))
    if not checked or len(set(checked)) != len(checked):
        raise ValueError("pool_factors must be distinct numbers from 1 (no pooling) to 100, such as 1,2,4")
    return checked


Dims = Annotated[tuple[int, ...], BeforeValidator(_split), AfterValidator(_distinct)]
PoolFactors = Annotated[tuple[float, ...], BeforeValidator(_split), AfterValidator(_factors)]
Weights = Annotated[tuple[float, ...], BeforeValidator(_split)]


class Assembly(Recipe):
    """Settings of an encoder to build from a backbone. The field descriptions are also the flags' help."""

    dims: Dims = Field(default=PAPER_DIMS, description="Dimensions of the heads, the default one first.")
    query_length: int = Field(
        default=32, ge=1, description="Tokens of each query. Shorter queries are padded with masks."
    )
    document_length: int = Field(
        default=300,
        ge=1,
        description="Maximum tokens of a document, including markers. Longer ones are truncated or split.",
    )
    skiplist: Annotated[
        Literal["stanford", "pieces"] | None, BeforeValidator(lambda value: None if value == "none" else value)
    ] = Field(
        default="stanford",
        description="Punctuation of documents that is not scored: 'stanford' as in ColBERT, 'pieces' for each piece, "
        "or 'none'.",
    )
    markers: bool = Field(default=True, description="Begin queries and documents with a marker token each.")
    texts: int = Field(
        default=3000, ge=2, description="Size of the sample to fit the heads to: half queries, half positives."
    )
    seed: int = Field(default=13, ge=0, lt=2**32, description="Seed of the sample.")
    lang: str | None = Field(default=None, description="Use only rows with this lang.")


class TrainingRecipe(Recipe):
    """Settings of encoder training. The field descriptions are also the flags' help.

    The defaults are the recipe ``train``: adapt a trained model to a domain by LoRA and the heads. It takes pairs or
    triplets: scores are distilled where there are any, and negatives are used where there are any.
    """

    dims: Dims | None = Field(
        None, description="Matryoshka dimensions to train, the default one first. Heads that the model lacks are added."
    )
    heads: Literal["untied", "tied"] = Field(
        "untied", description="'untied': a matrix for each dimension. 'tied': each is a prefix of the largest (MRL-E)."
    )
    head_weights: Weights | None = Field(
        None, description="Weight of each dimension's loss, in the order of dims. Equal by default."
    )
    pool_factors: PoolFactors = Field(
        (1.0,),
        description="Token pooling factors to train for, such as 1,2,4. Each head's loss is the mean over them. 1 is "
        "without pooling.",
    )
    negatives: int = Field(
        7, ge=0, description="Maximum hard negatives of a row. If it has more, others are drawn each epoch."
    )
    contrastive_weight: float = Field(1.0, ge=0, description="Weight of InfoNCE with in-batch negatives.")
    symmetric: bool = Field(False, description="Use InfoNCE from passages to queries too, as for pairs.")
    distillation_weight: float = Field(
        1.0, ge=0, description="Weight of the KL divergence to the teacher's scores, in rows that have them."
    )
    scale: float | None = Field(
        None,
        gt=0,
        le=1e6,
        description="Factor on MaxSim scores before a softmax (1 / temperature). Defaults to twice the one with the "
        "lowest loss at the start.",
    )
    teacher_temperature: float = Field(
        1.0, ge=1e-6, le=1e6, description="Divisor of the teacher's scores before their softmax."
    )
    document_length: int | None = Field(
        None, ge=3, description="Tokens to which passages are truncated in training. Defaults to the model's length."
    )
    batch_size: int = Field(16, ge=1, description="Rows per step on each device.")
    tokens_per_batch: int | None = Field(
        None,
        ge=16,
        description="Padded tokens per forward pass. A lower number saves memory with --cached, and time on a CPU.",
    )
    cached: bool = Field(
        False,
        description="Use gradient caching (GradCache): memory does not grow with the batch, but a step takes a third "
        "longer.",
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the rows.")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many steps, whatever the epochs.")
    learning_rate: float = Field(4e-4, gt=0, le=1, description="Learning rate of the backbone, or of LoRA.")
    head_learning_rate: float = Field(1e-3, gt=0, le=1, description="Learning rate of the heads.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay of AdamW.")
    warmup: float = Field(0.05, ge=0, lt=1, description="Share of the steps in which the learning rates rise.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rates fall afterwards: linear, cosine or constant."
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    freeze_backbone: bool = Field(False, description="Train only the heads.")
    lora: bool = Field(
        True, description="Train low-rank matrices (LoRA) instead of the backbone's own, and merge them at the end."
    )
    lora_rank: int = Field(16, ge=1, description="Rank and alpha of the LoRA matrices.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the LoRA matrices.")
    interpolation: float = Field(
        1.0,
        gt=0,
        le=1,
        description="How far to move from the initial to the trained weights (WiSE-FT). Below 1, the model forgets "
        "less.",
    )
    bf16: bool | None = Field(None, description="Compute in bfloat16. Defaults to yes on GPUs that support it.")
    accumulate: int = Field(1, ge=1, description="Batches whose gradients are added up for a step.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations twice: less memory, but a step takes a third longer."
    )
    dev_share: float = Field(
        0.05, ge=0, lt=0.5, description="Share of the rows to hold out as dev set if there is no --dev. 0 for none."
    )
    dev_size: int = Field(500, ge=1, description="Maximum number of rows to hold out.")
    evaluations: int = Field(10, ge=1, description="Evaluations on the dev set, each followed by a checkpoint.")
    patience: int = Field(
        3, ge=0, description="Stop after this many evaluations without a better nDCG@10 on the dev set. 0 for never."
    )
    log_every: int = Field(10, ge=1, description="Steps between log lines.")
    seed: int = Field(13, ge=0, lt=2**32, description="Seed of the order of rows, the draw of negatives and dropout.")
    keep_checkpoints: int = Field(2, ge=1, description="Number of checkpoints to keep during the run.")

    @model_validator(mode="after")
    def _fit_together(self) -> TrainingRecipe:
        if self.contrastive_weight == 0 and self.distillation_weight == 0:
            raise ValueError("contrastive_weight and distillation_weight are both 0, so there is nothing to train on")
        if self.head_weights is not None:
            if self.dims is None or len(self.dims) != len(self.head_weights):
                raise ValueError("head_weights needs dims, and as many of them")
            if min(self.head_weights) < 0 or max(self.head_weights) == 0:
                raise ValueError(f"head_weights must not be negative or all 0, got {list(self.head_weights)}")
        if self.lora and self.freeze_backbone:
            raise ValueError("lora and freeze_backbone exclude each other; give --no-lora to train the heads only")
        return self


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
