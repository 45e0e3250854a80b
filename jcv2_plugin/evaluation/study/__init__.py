"""Studies: measure a model on your own test sets and write a report, with ``jcv2 study``.

A :class:`~jcv2_plugin.evaluation.study.base.Study` is a list of cells. Each cell is written to disk as soon as it is
measured, so a run can be interrupted and continued. The report covers the cells measured so far.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jcv2_plugin.lazy import lazy_exports

if TYPE_CHECKING:
    from jcv2_plugin.evaluation.study.base import Cell, Chart, Report, Study, StudyError, Table
    from jcv2_plugin.evaluation.study.running import run_study

__all__ = ["Cell", "Chart", "Report", "Study", "StudyError", "Table", "run_study"]

__getattr__, __dir__ = lazy_exports(__name__, {name: "running" if name == "run_study" else "base" for name in __all__})
