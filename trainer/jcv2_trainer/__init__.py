"""Prepare and check late-interaction training data, and fit heads for a backbone that has none.

:func:`check_file` reports what is wrong with a file of pairs or triplets, and :func:`sample_texts` draws texts
from one. :mod:`jcv2_trainer.heads.principal`, which needs torch and is therefore not imported here, fits
Matryoshka heads without training, as a start for training. The command ``jcv2-finetune`` does both.
"""

from __future__ import annotations

from jcv2_trainer.data.check import CheckReport, Finding, check_file
from jcv2_trainer.data.reading import DataError, read_jsonl, sample_texts

__all__ = ["CheckReport", "DataError", "Finding", "check_file", "read_jsonl", "sample_texts"]
