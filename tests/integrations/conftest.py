"""Locations for a collection on both embedded engines."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=["memory", "folder"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """In memory (qdrant-client's local mode), and a folder (Qdrant Edge)."""
    return ":memory:" if request.param == "memory" else str(tmp_path / "collection")
