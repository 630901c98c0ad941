"""The ``skerry`` command: finds the part that a word names and imports it only then."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence

from skerry import __version__
from skerry.errors import SkerryError

# Word: where its main(arguments) is, what it does, and the extra that brings what it needs.
COMMANDS = {
    "compile": ("compiler.cli:main", "turn a torch model into a verified, signed bundle", "compiler"),
    "targets": ("compiler.targets.cli:main", "say what each target can do, each fact with its source", "compiler"),
    "inspect": ("skerry.inspect:main", "verify a bundle and show what is in it", ""),
    "compare": ("compiler.comparison.cli:main", "run two bundles on the same frames, side by side", "compiler"),
    "agent": ("edge_agent.cli:main", "run models on this device: run, install, status", "agent"),
    "hub": ("cloud_hub.cli:main", "run the hub of a fleet: API, registry, rollouts, broker", "hub"),
    "fleet": ("skerry.fleet.cli:main", "devices, releases and rollouts of a hub", "client"),
    "doctor": ("skerry.doctor:main", "say what this machine can run, what is missing, how to mend it", ""),
}


def usage() -> str:
    """The commands, one a line."""
    lines = [f"  {word:<9} {what}" for word, (_, what, _) in COMMANDS.items()]
    return "\n".join([f"skerry {__version__}", "usage: skerry COMMAND …", *lines, "skerry COMMAND --help says more"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Every `SkerryError` becomes one line on standard error and its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(__version__)
        return 0
    if words[0] not in COMMANDS:
        print(f"skerry: unknown command {words[0]!r}\n{usage()}", file=sys.stderr)
        return 2
    return _run(words[0], words[1:])


def _run(word: str, rest: Sequence[str]) -> int:
    where, _, extra = COMMANDS[word]
    module, attribute = where.split(":")
    try:
        command: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), attribute)
        code = command(rest)
        sys.stdout.flush()
    except SkerryError as exc:
        return _leave(word, str(exc), exc.exit_code)
    except ModuleNotFoundError as exc:
        hint = f"; install it with: pip install 'skerry[{extra}]'" if extra else ""
        return _leave(word, f"needs {exc.name}, which is not installed{hint}", 1)
    except KeyboardInterrupt:
        return _leave(word, "stopped", 130)
    except BrokenPipeError:  # `skerry inspect … | head`: whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _leave(word: str, why: str, code: int) -> int:
    print(f"skerry {word}: {why}", file=sys.stderr)
    return code
