"""Measured answers to the questions a user of late interaction has: ``jcv2 study``.

A :class:`~jcv2_plugin.evaluation.study.base.Study` is a list of cells. Each is measured and written at once, so that a
run may be stopped and repeated. The report is made of what has been measured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jcv2_plugin.lazy import lazy_exports

if TYPE_CHECKING:
    from jcv2_plugin.evaluation.study.base import (
        Cell,
        Chart,
        Measured,
        Report,
        Result,
        Section,
        Study,
        StudyError,
        Table,
    )
    from jcv2_plugin.evaluation.study.running import run_study

__all__ = [
    "Cell",
    "Chart",
    "Measured",
    "Report",
    "Result",
    "Section",
    "Study",
    "StudyError",
    "Table",
    "run_study",
]

_HOMES = {name: "running" if name == "run_study" else "base" for name in __all__}

__getattr__, __dir__ = lazy_exports(__name__, _HOMES)
