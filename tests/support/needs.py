"""What a test needs of the machine: absent, it skips and says so; in continuous integration it fails."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

ASSETS = Path(__file__).parents[2] / "assets"


def missing(what: str) -> NoReturn:
    """Skips the test; fails it where ``CI`` is set."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; continuous integration must have it", pytrace=False)
    pytest.skip(what)


def program(name: str, package: str) -> str:
    """The path of a program that a Debian package brings."""
    return shutil.which(name) or missing(f"{name} is not here (Debian: {package}; scripts/install_test_needs.sh)")


def asset(path: str) -> Path:
    """A file of ``assets/``, which ``make test`` fetches."""
    file = ASSETS / path
    return file if file.exists() else missing(f"{file} is not here: run scripts/fetch_assets.py assets")
