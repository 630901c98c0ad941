"""A stranger's shell: the real ``skerry`` in a process of its own, at home in a folder that belongs to the test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

STRANGERS = Path(__file__).parents[1] / "strangers"
SKERRY = [str(Path(sys.executable).with_name("skerry"))]  # not `python -m`: that would put the folder at hand first

# The compiler's own main, and what it pulled into its process.
_WATCHED = """
import sys
from skerry.main import main
code = main(sys.argv[1:])
print("torch in the parent:", any(name.split(".")[0] == "torch" for name in sys.modules))
sys.exit(code)
"""

_SAVE_WEIGHTS = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from net import build
torch.manual_seed(int(sys.argv[3]))
net = build()
with torch.no_grad():
    net.head.weight.mul_(40)  # untrained, but sure of itself: a proof needs decided answers
torch.save(net.state_dict(), sys.argv[2])
"""


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def line(self, word: str) -> str:
        """The one line with ``word`` in it."""
        (found,) = [line for line in (self.out + self.err).splitlines() if word in line]
        return found

    def refusal(self) -> str:
        """The one line that a refused command leaves for its user; fails if there is a traceback, or more, or less."""
        assert self.code not in (0, -9), self
        assert "Traceback" not in self.out + self.err, self.err
        lines = [line for line in self.err.splitlines() if not _is_log(line)]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("skerry "), lines
        return lines[0]


def _is_log(line: str) -> bool:
    return line[:2] == "20" and line[4:5] == "-"  # the agent's log lines begin with the date


@dataclass(frozen=True)
class Shell:
    """Runs commands. ``home`` keeps the keys, the cache and the state that a user has in the home folder."""

    home: Path

    def skerry(self, *words: object, cwd: Path | None = None, seconds: float = 120.0) -> Said:
        """Runs ``skerry`` to its end, which must come by then."""
        return self._run([*SKERRY, *map(str, words)], cwd, seconds)

    def watched(self, *words: object) -> Said:
        """The same, and says at the end whether the process itself imported torch."""
        return self._run([sys.executable, "-c", _WATCHED, *map(str, words)])

    def python(self, code: str, *words: object) -> str:
        """Runs a script and returns what it printed."""
        done = self._run([sys.executable, "-c", code, *map(str, words)])
        assert done.code == 0, done.err
        return done.out

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Starts ``skerry`` and leaves it running."""
        command = [*SKERRY, *map(str, words)]
        return subprocess.Popen(
            command, env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def _run(self, command: Sequence[str], cwd: Path | None = None, seconds: float = 120.0) -> Said:
        done = subprocess.run(
            command,
            env=self.environment(),
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    def environment(self) -> dict[str, str]:
        folders = {f"XDG_{kind}_HOME": str(self.home / kind.lower()) for kind in ("CONFIG", "CACHE", "STATE")}
        return {**os.environ, **folders}

    @property
    def public_key(self) -> Path:
        """The key that this user's bundles are signed with, once one was compiled."""
        return self.home / "config" / "skerry" / "signing.pem.pub"


def repository(name: str, folder: Path) -> Path:
    """A copy of a stranger's repository, as if just cloned."""
    shutil.copytree(STRANGERS / name, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def save_weights(shell: Shell, root: Path, out: Path, seed: int = 1) -> Path:
    """Writes a state dict that fits ``net.py:build`` in ``root``."""
    shell.python(_SAVE_WEIGHTS, root, out, str(seed))
    return out


def photograph(folder: Path, count: int, first: int = 0) -> Path:
    """Fills ``folder`` with small photos, each a blur of its own colours; the same number gives the same photo."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        spots = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(spots).resize((48, 40), Image.Resampling.BILINEAR).save(folder / f"{number:03}.png")
    return folder
