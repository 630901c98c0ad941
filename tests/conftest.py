"""What tests of every part share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Real data that is no part of the repository: beside the checkout on the project's own machines, or named.
DATA = Path(os.environ.get("SKERRY_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))

# No deadline: a test asserts no absolute time. The same examples every time where a change is judged.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture
def data() -> Path:
    """The folder of real data; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip(f"{DATA} is not there: set SKERRY_TEST_DATA to the folder of real test data")
    return DATA
