"""Score passages with a cross-encoder, as the teacher for distillation."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from jcv2_plugin.errors import Jcv2Error
from jcv2_plugin.files import read_json
from jcv2_trainer.data.check import validate
from jcv2_trainer.data.reading import DataError, mendable_rows
from jcv2_trainer.mining.resumable import (
    Progress,
    file_identity,
    model_identity,
    open_output,
    short_of_memory,
)
from jcv2_trainer.recipes import Recipe

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_HEADS = ("ForSequenceClassification", "ForCausalLM")
_ONE_SCORE = "Give a cross-encoder with one score per pair (num_labels 1)."
_ROW_OVERHEAD = 8  # maximum rows of a window, as a multiple of its pairs: rows may have none to score


class ScoreRecipe(Recipe):
    """Settings for scoring passages. The field descriptions are also the flags' help.

    Scores are logits, the targets of distillation, which the training recipes soften by a temperature.
    """

    overwrite: bool = Field(
        True, description="Score every row. Otherwise rows keep the scores they have, which may mix teachers."
    )
    batch_size: int = Field(32, ge=1, description="Query-passage pairs per forward pass.")
    window: int = Field(
        8, ge=1, description="Batches sorted by length together, against padding. A killed run repeats at most these."
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="Tokens to which a query and a passage together are truncated. Defaults to the teacher's.",
    )
    dtype: Literal["float32", "float16", "bfloat16", "auto"] = Field(
        "float32",
        description="Data type of the teacher: float32, float16, bfloat16, or auto, as its weights are stored.",
    )


class TeacherError(Jcv2Error):
    """A teacher cannot be loaded, or is not a cross-encoder with one score. The message names it and the remedy."""


@dataclass
class ScoreReport:
    """Result of :func:`score`, in numbers."""

    rows: int
    resumed_at: int  # rows done in an earlier run
    pairs: int  # of a query and a passage, scored
    kept: int  # rows that kept their scores
    lone: int  # rows without negatives, whose single score is useless for distillation


def score(
    data: Path,
    out: Path,
    teacher: str,
    settings: ScoreRecipe,
    *,
    trust_remote_code: bool = False,
    device: str | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ScoreReport:
    """Write the rows of a training file with a teacher's logits for the positive, then for each negative.

    The file is read twice, first to find errors before anything is scored. A window of rows is held in memory, after
    each of which ``progress`` is called. For ``out``, ``resume`` and ``force``, see
    :func:`~jcv2_trainer.mining.resumable.open_output`.

    Raises:
        DataError: A row is invalid. The first one is reported, before anything is written.
        TeacherError: The teacher cannot be loaded, or returns more than one score per pair or a score that is not
            finite.
        OutputError: ``out`` exists, or its run cannot be resumed.
        OutOfMemoryError: The batch is too large.
    """
    identity = {
        "command": "score",
        "input files": file_identity(data),
        "settings": settings.model_dump(exclude={"batch_size", "window"}),
        **model_identity(teacher, "teacher"),
    }
    with open_output(out, identity, data=data, resume=resume, force=force) as output:
        total = sum(1 for _ in mendable_rows(data))
        if not total:
            raise DataError(f"{data} has no rows. Give a file of pairs or triplets.")
        model = load_teacher(teacher, settings, trust_remote_code=trust_remote_code, device=device)
        for batch in _windows(mendable_rows(data, output.rows), settings):
            written = _scored(batch, model, teacher, settings, output.counts)
            output.append(written, len(batch))
            if progress is not None:
                progress(output.rows, total)
    counts = output.counts
    return ScoreReport(output.rows, output.resumed_at, counts["pairs"], counts["kept"], counts["lone"])


def _windows(rows: Iterator[dict[str, Any]], settings: ScoreRecipe) -> Iterator[list[dict[str, Any]]]:
    """Yield rows with about ``window`` batches of pairs to score."""
    most = settings.window * settings.batch_size
    batch: list[dict[str, Any]] = []
    pairs = 0
    for row in rows:
        batch.append(row)
        pairs += 0 if _is_kept(row, settings) else len(_passages(row))
        if pairs >= most or len(batch) >= _ROW_OVERHEAD * most:
            yield batch
            batch, pairs = [], 0
    if batch:
        yield batch


def _is_kept(row: dict[str, Any], settings: ScoreRecipe) -> bool:
    """Return whether a row keeps its scores, which it has without errors."""
    if settings.overwrite or row.get("scores") is None:
        return False
    return not any(fault.field.startswith("scores") for fault in validate(row, {})[1])


def _scored(
    batch: Sequence[dict[str, Any]], model: CrossEncoder, teacher: str, settings: ScoreRecipe, counts: Counter[str]
) -> list[dict[str, Any]]:
    wanted = [row for row in batch if not _is_kept(row, settings)]
    pairs = [(row["query"], passage) for row in wanted for passage in _passages(row)]
    scores = iter(_logits(pairs, model, teacher, settings.batch_size))
    counts["pairs"] += len(pairs)
    counts["kept"] += len(batch) - len(wanted)
    counts["lone"] += sum(len(_passages(row)) == 1 for row in batch)
    return [
        row if _is_kept(row, settings) else {**row, "scores": list(islice(scores, len(_passages(row))))}
        for row in batch
    ]


def _passages(row: dict[str, Any]) -> list[str]:
    return [row["positive"], *(row.get("negatives") or [])]


def _logits(pairs: list[tuple[str, str]], model: CrossEncoder, teacher: str, batch_size: int) -> list[float]:
    import torch

    if not pairs:
        return []
    with short_of_memory(batch_size):
        # predict sorts the pairs by length before it batches them.
        raw = model.predict(pairs, batch_size=batch_size, activation_fn=torch.nn.Identity(), show_progress_bar=False)
    if raw.shape != (len(pairs),):
        raise TeacherError(
            f"The teacher {teacher!r} returned scores of shape {tuple(raw.shape)} for {len(pairs)} pairs. {_ONE_SCORE}"
        )
    for (query, passage), logit in zip(pairs, raw, strict=True):
        if not math.isfinite(logit):
            raise TeacherError(
                f"The teacher {teacher!r} returned {logit} for query {query!r:.60} and passage {passage!r:.60}. "
                "Try --dtype float32, or another teacher."
            )
    # The shortest digits that give the same float32 when read back.
    return [float(str(one)) for one in raw]


def load_teacher(
    name: str, settings: ScoreRecipe, *, trust_remote_code: bool = False, device: str | None = None
) -> CrossEncoder:
    """Load a cross-encoder that returns one logit per pair. No pickle is read, and no remote code is run unless
    trusted.

    Raises:
        TeacherError: It cannot be loaded, is not such a cross-encoder, or needs its repository's code.
    """
    import torch
    from sentence_transformers import CrossEncoder

    _check_config(name, trust_remote_code)
    try:
        model: CrossEncoder = CrossEncoder(
            name,
            device=device,
            max_length=settings.max_length,
            activation_fn=torch.nn.Identity(),
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": settings.dtype, "use_safetensors": True},
        )
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        raise TeacherError(
            f"The teacher {name!r} cannot be loaded: {_first_line(error)} Give a cross-encoder of "
            "sentence-transformers with safetensors weights, by name or folder."
        ) from error
    if model.num_labels != 1:
        raise TeacherError(f"The teacher {name!r} is a classifier with {model.num_labels} labels. {_ONE_SCORE}")
    config = getattr(model.model, "config", None)
    most = getattr(config, "max_position_embeddings", None)
    if settings.max_length is not None and isinstance(most, int) and most > 0:
        # The positions that RoBERTa reserves for padding do not count.
        most -= 2 if "roberta" in str(getattr(config, "model_type", "")) else 0
        if settings.max_length > most:
            raise TeacherError(
                f"max_length is {settings.max_length}, but the teacher {name!r} has {most} positions. Give "
                f"--max-length {most} or less, or leave it out."
            )
    return model


def _check_config(name: str, trust_remote_code: bool) -> None:
    """Reject models that would be loaded with random weights, and thus silently score at random.

    A repository with its own code may name an architecture that transformers also has, under other weight names
    (jina-reranker-v2 does). A plain encoder would get a randomly initialised head.
    """
    from transformers import PretrainedConfig

    if name.startswith((".", "~", os.sep)) and not Path(name).expanduser().is_dir():
        raise TeacherError(f"The folder {name!r} does not exist. Check the path, or give a model of the hub.")
    try:
        config: dict[str, Any] = PretrainedConfig.get_config_dict(name)[0]
    except (OSError, ValueError) as error:
        raise TeacherError(
            f"The teacher {name!r} is neither a model folder nor a model that the hub returns: {_first_line(error)} "
            "Give another name or a folder."
        ) from error
    code = config.get("auto_map")
    if code and not trust_remote_code:
        raise TeacherError(
            f"The teacher {name!r} needs its own Python code ({', '.join(sorted(code))}), which was not run. If you "
            "trust it, give --trust-remote-code. Otherwise give another teacher."
        )
    if not config:
        raise TeacherError(f"The folder {name!r} has no config.json. Give the folder of a cross-encoder.")
    architectures = config.get("architectures") or []
    if not code and not _is_saved_cross_encoder(name) and not any(one.endswith(_HEADS) for one in architectures):
        raise TeacherError(
            f"The teacher {name!r} has no head that scores pairs (architectures: {architectures}), so its scores would "
            "be random. Give a trained cross-encoder."
        )


def _is_saved_cross_encoder(name: str) -> bool:
    """Return whether sentence-transformers saved it as a cross-encoder, whose head may be a separate module."""
    from sentence_transformers.util import load_file_path

    if (file := load_file_path(name, "config_sentence_transformers.json")) is None:
        return False
    try:
        settings = read_json(Path(file))
    except (OSError, ValueError) as error:
        raise TeacherError(f"{file} cannot be read ({error}). Download the teacher again.") from error
    return isinstance(settings, dict) and settings.get("model_type") == "CrossEncoder"


def _first_line(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return text if text.endswith((".", "!", "?")) else f"{text}."
