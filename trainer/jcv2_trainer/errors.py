"""Training errors other than :class:`~jcv2_trainer.data.lines.DataError`."""

from __future__ import annotations

from jcv2_plugin.errors import Jcv2Error


class TrainingError(Jcv2Error, RuntimeError):
    """Training cannot start or continue. The message states the reason and the remedy."""
