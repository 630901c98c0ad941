"""Log lines: for people, for the journal, or as JSON for a collector."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from typing import Any

FORMATS = ("text", "journal", "json")
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def chosen(asked: str | None, environ: Mapping[str, str]) -> str:
    """The format asked for; else the journal's own where the journal listens (systemd sets JOURNAL_STREAM)."""
    return asked or ("journal" if "JOURNAL_STREAM" in environ else "text")


def start(form: str, run: str) -> None:
    """Sends the agent's log lines to standard error.

    Args:
        form: one of `FORMATS`.
        run: names this run of the agent in every JSON line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form, run))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def formatter(form: str, run: str) -> logging.Formatter:
    """How a record becomes a line."""
    if form == "json":
        return _Json(run)
    if form == "journal":
        return _Journal("%(message)s")
    return logging.Formatter("%(asctime)s %(levelname)s %(message)s")


class _Journal(logging.Formatter):
    """The journal keeps the time itself; a number in front is the priority (sd-daemon(3)), on each line of a record."""

    def format(self, record: logging.LogRecord) -> str:
        priority = _PRIORITY.get(record.levelno, 6)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())


class _Json(logging.Formatter):
    """One object a line."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "utc_ms": int(record.created * 1000),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "run": self._run,
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
