"""Finetuning of late-interaction models.

:func:`check_file` reports problems in a file of pairs or triplets, and :func:`sample_texts` samples texts from one.
:mod:`jcv2_trainer.heads.principal`, which requires torch and is therefore not imported here, fits Matryoshka heads
without training, as a starting point for training. The command ``jcv2-finetune`` does both, mines hard negatives, and
trains.
"""

from __future__ import annotations

from jcv2_trainer.data.check import CheckReport, Finding, check_file
from jcv2_trainer.data.reading import DataError, read_jsonl, sample_texts

__all__ = ["CheckReport", "DataError", "Finding", "check_file", "read_jsonl", "sample_texts"]
