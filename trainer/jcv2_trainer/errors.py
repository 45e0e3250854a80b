"""Training errors other than :class:`~jcv2_trainer.data.lines.DataError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jcv2_plugin.errors import Jcv2Error


class TrainingError(Jcv2Error, RuntimeError):
    """Training cannot start or continue. The message states the reason and the remedy."""


@contextmanager
def out_of_memory(said: Jcv2Error) -> Iterator[None]:
    """Raise an error that says what to change instead of PyTorch's or Python's when memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = ("out of memory", "can't allocate memory", "cannot allocate memory")
        if isinstance(error, Jcv2Error) or not (
            isinstance(error, MemoryError) or any(one in str(error).lower() for one in known)
        ):
            raise
        raise said from error
