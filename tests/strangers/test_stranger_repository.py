"""A stranger's repository compiles as it is: whatever its packages are called, wherever the net lies in it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import run

import pytest
from shell import Said, Shell, photograph, repository, save_weights

from compiler.host import Host
from skerry.errors import UserCodeError
from skerry.manifest import Manifest

pytestmark = pytest.mark.slow

RECIPE = """
name = "inside"
labels = "labels.txt"
[model]
build = "nets/inside.py:build"
outputs = ["scores"]
[input]
shape = [1, 3, 32, 32]
[preprocess]
resize = "stretch"
mean = [0.5]
std = [0.25]
[postprocess]
kind = "classification"
scores = "scores"
[proof]
max_time_ratio = 4.0
"""


@dataclass(frozen=True)
class Desk:
    """A folder with a repository, weights and photos in it, from which a stranger types."""

    folder: Path
    shell: Shell

    def types(self, command: str) -> Said:
        return self.shell.skerry(*command.split(), cwd=self.folder)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    folder = tmp_path_factory.mktemp("desk")
    shell, root = Shell(folder / "home"), repository("my_repo", folder / "my_repo")
    save_weights(shell, root, folder / "w.pth")
    photograph(folder / "photos", 140)
    return Desk(folder, shell)


def manifest_of(desk: Desk, bundle: str) -> Manifest:
    said = desk.types(f"inspect {bundle} --json")  # verifies it first
    assert said.code == 0, said.err
    return Manifest.parse(said.out.strip().encode())


def test_packages_called_models_compiler_and_tests_are_the_strangers_own(desk: Desk) -> None:
    said = desk.types(
        "compile my_repo/net.py:build --weights w.pth --calib photos/ --target x86-64 --keep-slower -o net.skb"
    )

    assert said.code == 0, said.err
    manifest = manifest_of(desk, "net.skb")
    assert manifest.name == "my_repo"
    assert [variant.id for variant in manifest.variants if variant.backend == "onnxrt"] == ["fp32", "int8-rr"]


def test_a_recipe_may_name_a_net_inside_a_package(desk: Desk) -> None:
    (desk.folder / "my_repo" / "labels.txt").write_text("a\nb\nc\nd\n")
    (desk.folder / "my_repo" / "recipe.toml").write_text(RECIPE)

    said = desk.types("compile my_repo --weights w.pth --calib photos --target x86-64 --keep-slower -o inside.skb")

    (desk.folder / "my_repo" / "recipe.toml").unlink()
    assert said.code == 0, said.err
    assert manifest_of(desk, "inside.skb").name == "inside"


def test_the_command_line_may_name_a_net_inside_a_package(desk: Desk) -> None:
    """Its root is the folder above the package, as for every tool that runs a module."""
    command = "compile my_repo/nets/inside.py:build --weights w.pth --calib photos --target x86-64"

    said = desk.types(f"{command} --keep-slower --input 1x3x32x32 -o named.skb")

    assert said.code == 0, said.err
    assert [variant.id for variant in manifest_of(desk, "named.skb").variants][:2] == ["fp32", "int8-rr"]


def test_the_command_is_ours_even_where_the_folder_at_hand_has_a_compiler(desk: Desk, tmp_path: Path) -> None:
    """`python -m` puts the folder at hand first: what lies there must not run in the command's own process."""
    root = repository("my_repo", tmp_path / "my_repo")
    (root / "compiler" / "__init__.py").write_text("from pathlib import Path\nPath('ran').touch()\n")
    command = [sys.executable, "-m", "skerry", "compile", "--help"]

    done = run(command, cwd=root, env=desk.shell.environment(), capture_output=True, check=False)

    assert done.returncode == 0, done.stderr
    assert b"Compile a torch model" in done.stdout
    assert not (root / "ran").exists()


# Habits of research code, told apart by a recipe that is refused right after the code has run


HABITS: Mapping[str, str] = {
    "prints": "print('loading …', flush=True)",
    "changes-folder": "import os\nos.chdir(os.path.dirname(os.path.abspath(__file__)))",
    "reads-its-arguments": "import argparse\nOPTIONS = argparse.ArgumentParser().parse_args()",
    "sets-the-default-type": "import torch\ntorch.set_grad_enabled(True)",
}


@pytest.mark.parametrize("habit", HABITS)
def test_what_research_code_does_when_it_is_imported_does_no_harm(desk: Desk, tmp_path: Path, habit: str) -> None:
    root = repository("colours", tmp_path / "colours")
    save_weights(desk.shell, root, tmp_path / "w.pth")
    (root / "net.py").write_text(HABITS[habit] + "\n" + (root / "net.py").read_text())
    recipe = root / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('color = "rgb"', 'color = "bgr"'))
    photograph(tmp_path / "photos", 140)

    command = "compile colours --weights w.pth --calib photos --target x86-64 --work work -o net.skb"
    refused = desk.shell.skerry(*command.split(), cwd=tmp_path).refusal()

    assert "pre-processing is not that of the code the net was trained with" in refused


# The child alone


def host(root: Path, build: str) -> Host:
    model = {"build": build, "weights": None, "shape": [1, 3, 16, 16], "outputs": ["scores"]}
    return Host(root, model, lambda _text: None)


def test_one_child_loads_the_model_once_and_tells_what_it_found(tmp_path: Path) -> None:
    root = repository("colours", tmp_path / "colours")

    with host(root, "net.py:build") as child:
        assert child.load() == child.load()
        assert child.load()["outputs"] == {"scores": [1, 4]}
        assert child.load()["parameters"] == 3 * 16 * 9 + 2 * 16 + 16 * 32 * 9 + 2 * 32 + 32 * 4 + 4


def test_a_child_that_is_never_asked_is_never_started(tmp_path: Path) -> None:
    with host(tmp_path / "nowhere", "net.py:build"):
        pass


def test_what_the_strangers_code_raises_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import deep\n\ndef build():\n    return deep.build()\n")
    (tmp_path / "deep.py").write_text("def build():\n    size = 0\n    return 1 / size\n")

    with (
        host(tmp_path, "net.py:build") as child,
        pytest.raises(UserCodeError, match=r"ZeroDivisionError: division by zero \(deep\.py:3\)"),
    ):
        child.load()
