"""What must never be imported, written or read where: held by looking, not by promising."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = ("torch", "fastapi", "sqlalchemy", "sqlite3", "onnx", "rich", "cv2", "httpx", "pydantic", "skerry.fleet")

# What writes a file, by the name of the call; the durable disk alone may.
WRITERS = {"write_text", "write_bytes", "touch", "mkdir", "rename", "replace", "unlink", "rmdir", "symlink_to"}

# Files that may do what the rest may not, each with its reason.
ALLOWED = {
    "skerry/disk.py": "the one place for durable writes",
    "skerry/execution/prove.py": "writes to /proc/self, which is the kernel's, not the disk's",
}


def modules(*packages: str) -> list[str]:
    paths = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if path.name != "__main__.py"]
    return [name.removesuffix(".__init__") for name in names]


def device_modules() -> list[str]:
    """What may run on a device: not the operators' client."""
    return [name for name in modules("skerry", "edge_agent") if not name.startswith("skerry.fleet")]


def sources() -> list[Path]:
    """What may not write but through the disk; the compiler's child may, since libraries save for it."""
    return sorted(
        [
            *(ROOT / "skerry").rglob("*.py"),
            *(ROOT / "edge_agent").rglob("*.py"),
            *(p for p in (ROOT / "compiler").rglob("*.py") if "child" not in p.parts),
        ]
    )


def test_every_module_of_the_contracts_and_the_agent_imports_without_what_no_device_may_have():
    names = device_modules()
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print(sorted(m for m in {FORBIDDEN!r} if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", device_modules())
def test_every_module_imports_on_its_own(name):
    """No module leans on another one having been imported before it."""
    done = subprocess.run([sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_parent_process_stays_small():
    """The parent lives as long as the agent: what it imports is paid for twice."""
    script = "import sys, edge_agent.cli, edge_agent.parent, edge_agent.config; print('\\n'.join(sys.modules))"
    loaded = set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )
    heavy = {"numpy", "onnxruntime", "av", "asyncio", "anyio", "cryptography", "PIL"}
    assert not loaded & heavy


def calls(path: Path) -> list[tuple[int, str]]:
    """Calls in a file that write to a disk: line and name."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "open" and any(writes(argument) for argument in [*node.args, *[k.value for k in node.keywords]]):
            found.append((node.lineno, "open for writing"))
        if (
            name in WRITERS
            and isinstance(node.func, ast.Attribute)
            and not is_disk(node.func.value)
            and is_path_call(node)
        ):
            found.append((node.lineno, name))
    return found


def writes(argument: ast.expr) -> bool:
    return (
        isinstance(argument, ast.Constant)
        and isinstance(argument.value, str)
        and bool(set("wax+") & set(argument.value))
        and len(argument.value) <= 3
    )


def is_disk(value: ast.expr) -> bool:
    """Whether a call goes to a `Disk`: `disk.x`, `self._disk.x`, `Disk().x`."""
    text = ast.unparse(value)
    return text.endswith(("disk", "Disk()")) or text == "self"


def is_path_call(node: ast.Call) -> bool:
    """Tells `path.replace(other)` from `text.replace(old, new)` and `structs.replace(record, …)`."""
    return not (
        isinstance(node.func, ast.Attribute) and node.func.attr == "replace" and (len(node.args) != 1 or node.keywords)
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_but_the_disk_writes(path):
    if path.relative_to(ROOT).as_posix() not in ALLOWED:
        assert calls(path) == []


def test_the_rule_about_writing_can_fail(tmp_path):
    file = tmp_path / "sinner.py"
    file.write_text(
        "from pathlib import Path\nopen('x', 'w')\nPath('x').write_text('y')\nPath('a').replace(Path('b'))\n"
    )
    assert [name for _, name in calls(file)] == ["open for writing", "write_text", "replace"]


def test_every_module_of_the_contracts_is_under_the_import_rules():
    """import-linter's contracts name modules; a new one must not slip past them."""
    text = (ROOT / "pyproject.toml").read_text()
    for name in modules("skerry"):
        if not name.startswith(("skerry.execution", "skerry.fleet")) and name != "skerry":
            assert f'"{name}"' in text, f"{name} is in no import contract of pyproject.toml"
