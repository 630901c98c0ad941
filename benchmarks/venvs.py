"""Environments of the benchmarks' own: what they need and the product must never have (timm, torchvision, peers).

Each stands on the environment that runs the benchmark and adds the packages pinned in ``benchmarks/needs/<name>.txt``;
versions that the product pins stay as they are, or the installation fails.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
from pathlib import Path

from benchmarks.results import OUT

_NEEDS = Path(__file__).parent / "needs"
_MARK = ".installed"


def python(name: str) -> Path:
    """The interpreter of the environment ``name``; made if it is not there or its pins have changed."""
    folder, needs = (OUT / "venvs" / name).absolute(), _NEEDS / f"{name}.txt"
    interpreter, mark = folder / "bin" / "python", folder / _MARK
    wanted = hashlib.sha256(needs.read_bytes()).hexdigest()
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"making {folder} from {needs}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        _stand_on_this(interpreter)
        command = [str(interpreter), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*command, "-c", "constraints.txt", "-r", str(needs)], check=True)
        mark.write_text(wanted)
    return interpreter


def _stand_on_this(interpreter: Path) -> None:
    """Lets the new environment see the packages of this one, editable ones too."""
    asked = [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    theirs = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
    ours = sysconfig.get_path("purelib")
    (Path(theirs) / "stand-on.pth").write_text(f"import site; site.addsitedir({ours!r})\n")


if __name__ == "__main__":
    print(python(sys.argv[1]))
