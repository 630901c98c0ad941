"""JSON documents from outside: parsed into a type, or refused with one kind of error, whatever is wrong with them."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from skerry.errors import FormatError

T = TypeVar("T")


def parse(raw: bytes, schema: type[T], what: str) -> T:
    """Parses one JSON document.

    Raises:
        FormatError: not UTF-8, not JSON, nested too deep, or not of the schema; the message begins with ``what``.
    """
    try:
        return msgspec.json.decode(raw, type=schema)
    except (ValueError, RecursionError) as exc:  # msgspec's own errors and UnicodeDecodeError are ValueErrors
        raise FormatError(f"{what}: {exc}") from exc
