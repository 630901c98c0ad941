"""What a compilation has found so far, and what ends it: a hop that is out of tolerance, a limit that does not hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from compiler.evaluation.compare import Hop
from compiler.evidence.evidence import Race, Repair
from compiler.job import Tell
from skerry.errors import CompileError, ParityError


@dataclass
class Findings:
    """Collects statements for the evidence.

    Attributes:
        force: goes on after a refusal.
        forced: the refusals that it went past, in words.
    """

    force: bool
    tell: Tell
    hops: list[Hop] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)
    races: list[Race] = field(default_factory=list)

    def refuse(self, error: type[CompileError], why: str) -> None:
        """Ends the compilation, or with --force remembers what it went past. Raises ``error``."""
        if not self.force:
            raise error(why)
        self.forced.append(why)

    def hold(self, hop: Hop) -> None:
        """Keeps a hop and tells it. Raises `ParityError` if it failed."""
        self.hops.append(hop)
        self.tell.hop(hop)
        if hop.failed:
            self.refuse(ParityError, f"{hop.name}: {hop.failed}")
