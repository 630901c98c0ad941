"""The child's loop: one JSON line asks for a job, one answers it. Needs no torch.

A job's exception is told apart by whose code raised it: `UserError` for what the user can mend.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from skerry.errors import SkerryError

from .usercode import UserError

Progress = Callable[[str], None]


def serve(answers: int, make: Callable[[Progress], object]) -> None:
    """Answers jobs, methods of what ``make`` makes, until standard input ends."""
    with os.fdopen(answers, "w", encoding="utf-8") as out:

        def reply(value: dict[str, Any]) -> None:
            with contextlib.suppress(BrokenPipeError):  # the parent has gone
                out.write(json.dumps(value) + "\n")
                out.flush()

        worker = make(lambda text: reply({"progress": text}))
        for line in sys.stdin:
            request = json.loads(line)
            job = request.pop("job")
            try:
                reply(getattr(worker, job)(**request))
            except UserError as exc:
                reply({"error": str(exc), "whose": "user"})
            except SkerryError as exc:
                reply({"error": str(exc), "whose": "skerry"})
            except Exception as exc:  # noqa: BLE001 - whatever it is, the parent is waiting for an answer
                traceback.print_exc()
                reply({"error": f"{job}: {type(exc).__name__}: {one_line(exc)}", "whose": "skerry"})


def one_line(exc: BaseException) -> str:
    """An exception's own words, on one line."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return (lines[0] if lines else type(exc).__name__)[:300]
