"""What the terminal shows while a compilation goes on."""

from __future__ import annotations

import io

from rich.console import Console

from compiler.cli import _Tell


def test_what_the_search_tries_stays_on_the_line_while_its_small_passes_come_and_go():
    console = Console(file=io.StringIO(), width=200)
    with console.status("starting") as status:
        tell = _Tell(console, status, lambda: None)
        tell.detail("int8: candidate 3 of 12; best so far 9 of 12 units quantized")
        for small in ("candidate", "damage", "answers", "times"):
            tell.began(small)
            tell.ended(small, 0.1)

        assert status.status == "int8: candidate 3 of 12; best so far 9 of 12 units quantized"
        tell.began("calibrate")
        assert status.status == "calibrate"
    assert console.file.getvalue() == ""
