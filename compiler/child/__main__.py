"""Starts the child. Arguments: the user's root, the file descriptor to answer on, which worker, the parent's id.

The user's root comes first in the search path and this package is loaded under an alias of its own, so that a user's
``compiler``, ``models`` or ``tests`` package wins over ours.
"""

import contextlib
import ctypes
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import Any

_ALIAS = "_skerry_compiler_child"
_PR_SET_PDEATHSIG = 1


def _load_worker(name: str) -> Any:
    here = Path(__file__).parent
    spec = importlib.util.spec_from_file_location(_ALIAS, here / "__init__.py", submodule_search_locations=[str(here)])
    assert spec is not None  # noqa: S101 - the file is beside this one
    assert spec.loader is not None  # noqa: S101
    package = importlib.util.module_from_spec(spec)
    sys.modules[_ALIAS] = package
    spec.loader.exec_module(package)
    return importlib.import_module(f"{_ALIAS}.{name}")


def _end_with(parent: int) -> None:
    """Sees to it that a model that hangs does not outlive a compilation that was killed. Linux alone can do it."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was killed before
        sys.exit(1)


if __name__ == "__main__":
    root, answers, worker, parent = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    _end_with(parent)
    sys.path[0] = root  # instead of this folder
    del sys.argv[1:]  # what the user's code may parse when it is imported
    _load_worker(worker).serve(root, answers)
