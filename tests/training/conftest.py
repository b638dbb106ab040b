"""Small models and data for the trainer's tests: seconds, not minutes, and no files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the cases below run in processes of their own, too

import cases


@pytest.fixture
def data() -> cases.Line:
    return cases.Line()
