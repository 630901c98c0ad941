"""Configuration from TOML: one frozen object, a closed schema, errors that name the key.

TOML holds values only. What is computed is named as ``file.py:callable`` and run where code may run.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from skerry.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T", bound=msgspec.Struct)


def read_toml(path: Path) -> dict[str, Any]:
    """Raises `ConfigError` if ``path`` cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path} is not TOML: {exc}") from exc


def convert(values: dict[str, Any], schema: type[T], origin: str) -> T:
    """Checks ``values`` against a struct that forbids unknown fields.

    Raises:
        ConfigError: with the key's path, what was expected and what came.
    """
    try:
        return msgspec.convert(values, schema)
    except msgspec.ValidationError as exc:
        raise ConfigError(f"{origin}: {exc}") from exc
