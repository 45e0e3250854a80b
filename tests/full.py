"""Kills, soaks and the like run in a short form, and in full with ``JCV2_TEST_ALL=1`` (``make test-all``)."""

from __future__ import annotations

import os

FULL = bool(os.environ.get("JCV2_TEST_ALL"))
