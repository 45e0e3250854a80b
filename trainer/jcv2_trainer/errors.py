"""What may go wrong in a training, beside the data (see ``DataError``)."""

from __future__ import annotations

from jcv2_plugin.errors import Jcv2Error


class TrainingError(Jcv2Error, RuntimeError):
    """A training cannot start or go on; the message says why and what to do."""
