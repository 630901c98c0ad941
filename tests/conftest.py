"""What tests of every part share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Real data that is no part of the repository: beside the checkout on the project's own machines, or named.
DATA = Path(os.environ.get("SKERRY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def data() -> Path:
    """The folder of real data; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there: set SKERRY_TEST_DATA to the folder of real test data")
    return DATA
