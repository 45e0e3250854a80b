"""What a benchmark writes beside its figures of the machine it ran on."""

from __future__ import annotations

from jcv2_plugin.evaluation.study.environment import machine

__all__ = ["machine"]
