"""Training requests, and the split of their rows into training rows and dev set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from jcv2_trainer.data.check import text_key
from jcv2_trainer.data.datasets_io import split_dev
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.recipes.settings import TrainingRecipe
from jcv2_trainer.training.dev import DevSet
from jcv2_trainer.training.report import TrainingReport

Stage = Literal["train", "pairs", "triplets"]

_LEAST_PASSAGES = 500  # in a dev set split off from the data
_MOST_SOURCES = 50  # listed in the model card


@dataclass(frozen=True)
class Request:
    """What to train.

    Attributes:
        data: Files of pairs or triplets.
        model: Name or folder of the initial model.
        out: Output folder of the trained model. Checkpoints are in ``<out>.run`` during training.
        settings: The recipe.
        stage: Required data: ``"triplets"`` needs negatives, ``"pairs"`` and ``"train"`` need nothing.
        dev: Separate dev set: a file like ``data``, or a folder in BEIR layout.
        on_bad: How to handle rows with errors.
        languages: Use only rows with one of these ``lang`` values.
        resume: Resume from the last checkpoint.
        force: Replace ``out``, and restart an unfinished run.
        device: See :meth:`JinaColbertEncoder.from_pretrained`.
        revision: Hub revision of the model.
        attn_implementation: See :meth:`JinaColbertEncoder.from_pretrained`.
    """

    data: Sequence[Path]
    model: str
    out: Path
    settings: TrainingRecipe
    stage: Stage = "train"
    dev: Path | None = None
    on_bad: Literal["stop", "skip"] = "stop"
    languages: Sequence[str] | None = None
    resume: bool = False
    force: bool = False
    device: str | None = None
    revision: str | None = None
    attn_implementation: str | None = None

    def identity(self) -> dict[str, Any]:
        """Return what must stay the same to resume a run."""
        return {
            "stage": self.stage,
            "model": self.model,
            "revision": self.revision,
            "data": [str(path.absolute()) for path in self.data],
            "dev": None if self.dev is None else str(self.dev.absolute()),
            "languages": self.languages,
            **self.settings.model_dump(),
        }


def split(dataset: Dataset, request: Request) -> tuple[Dataset, DevSet | None, TrainingReport]:
    """Return the training rows, the dev set, and the report before training.

    Raises:
        TrainingError: The rows do not fit the stage, or none are left besides the dev set.
    """
    settings = request.settings
    negatives, scores = _lengths(dataset, "negatives"), _lengths(dataset, "scores")
    if request.stage == "triplets" and not negatives.all():
        raise TrainingError(
            f"{(negatives == 0).sum():,} of {len(dataset):,} rows have no negatives, so they are no triplets. "
            "Give them some with: jcv2-finetune mine; or train with: jcv2-finetune pairs (or train)."
        )
    if not settings.contrastive_weight and not (scores.all() and negatives.all() and settings.negatives):
        raise TrainingError(
            "contrastive_weight is 0, and there are rows without negatives or without a teacher's scores, from which "
            "nothing would be learnt. Write scores with: jcv2-finetune score; or give --contrastive-weight 1."
        )
    chosen, dev, held_out = list(range(len(dataset))), None, 0
    if request.dev is not None:
        dev = DevSet.read(request.dev)
        asked = {text_key(query) for query in dev.queries.values()}
        chosen = [index for index, key in enumerate(dataset["query_key"]) if key not in asked]
        held_out = len(dataset) - len(chosen)
        if not chosen:
            raise TrainingError(f"The queries of all {held_out:,} rows are queries of {request.dev} too. Give others.")
    elif settings.dev_share:
        chosen, dev_rows = split_dev(dataset, settings.dev_share, settings.dev_size, settings.seed)
        left = sorted(set(range(len(dataset))).difference(chosen, dev_rows))
        held_out = len(left)
        if not chosen:
            raise TrainingError(
                f"No rows are left for training beside a dev set of {len(dev_rows)}. Give more, or --dev-share 0."
            )
        if dev_rows:
            others = (row["positive"] for row in dataset.select(chosen[: 2 * _LEAST_PASSAGES]))
            dev = DevSet.of_rows(dataset.select(dev_rows), dataset.select(left), others, _LEAST_PASSAGES)
    labels = dataset.select_columns(["lang", "source"])[:]
    report = TrainingReport(
        model=request.model,
        stage=request.stage,
        rows=len(chosen),
        skipped={"query-of-dev-set": held_out} if held_out else {},
        data={
            "files": [path.name for path in request.data],
            "with_negatives": int((negatives[chosen] > 0).sum()),
            "with_scores": int((scores[chosen] > 0).sum()),
            "languages": sorted(set(labels["lang"])),
            "sources": sorted(set(labels["source"]))[:_MOST_SOURCES],
        },
        dev={} if dev is None else {"queries": len(dev.queries), "documents": len(dev.documents)},
        recipe=settings.model_dump(),
    )
    return dataset.select(chosen), dev, report


def _lengths(dataset: Dataset, column: str) -> NDArray[np.int64]:
    """Return the length of each row's list, without reading its values."""
    import pyarrow.compute as pc

    lengths: NDArray[np.int64] = pc.list_value_length(dataset.data.column(column)).to_numpy()
    return lengths
