"""The built wheel, in environments that hold nothing else: what a user's pip makes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
RELEASED = ROOT / "tests" / "formats" / "bundle-1.0"
FORBIDDEN = {"torch", "fastapi", "sqlalchemy", "onnx", "rich", "opencv-python", "opencv-python-headless"}
# What the agent's own tests need besides the agent.
OLDEST_NEEDS = ["pytest", "hypothesis", "onnx", "prometheus-client", "websockets"]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # From a copy: setuptools leaves a build folder behind, and two test workers may build at once.
    source = shutil.copytree(
        ROOT, out / "source", ignore=shutil.ignore_patterns(".git", ".venv", "build", "assets", "tests", "__pycache__")
    )
    run(sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source))
    return next(out.glob("*.whl"))


def run(*command: str, ok: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert not ok or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def environment(folder: Path, python: str, *packages: str) -> Path:
    """A virtual environment with these packages and nothing else; returns its bin folder."""
    run(python, "-m", "venv", str(folder))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    run(*pip, "-c", str(ROOT / "constraints.txt"), *packages)
    return folder / "bin"


def interpreter(version: str) -> str:
    """A Python of that version, from the path or from pyenv; skips if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for python in [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python{version}"))]:
        if python and run(str(python), "-c", "import venv", ok=False).returncode == 0:
            return str(python)
    pytest.skip(f"no Python {version} here")


@pytest.fixture(scope="session", params=["3.10", "3.11"])
def agent_env(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    python = interpreter(request.param)
    return environment(tmp_path_factory.mktemp(f"agent{request.param}"), python, f"{wheel}[agent]")


def test_the_wheel_holds_the_parts_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "skerry",
        "compiler",
        "edge_agent",
        "cloud_hub",
    }
    assert "compiler/targets/x86-64.toml" in names
    assert "skerry/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_agent_brings_no_torch_no_web_framework_and_no_database(agent_env):
    listed = json.loads(run(str(agent_env / "python"), "-m", "pip", "list", "--format=json").stdout)
    assert not {package["name"].lower() for package in listed} & FORBIDDEN


def test_the_agent_runs_where_nothing_else_is_installed(agent_env, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    paint = "from PIL import Image; Image.new('RGB', (30, 20), '{colour}').save('{number}.png')"
    for number, colour in enumerate(["red", "lime", "blue"]):
        run(str(agent_env / "python"), "-c", paint.format(colour=colour, number=number), cwd=images)
    trust = ["--trust", str(RELEASED / "signer.pub"), "--data", str(tmp_path / "data")]
    agent = [str(agent_env / "skerry"), "agent", "run", "--model", str(RELEASED / "bundle"), *trust]
    done = run(*agent, "--source", str(images), "--every", cwd=tmp_path)
    for number, colour in enumerate(["red", "green", "blue"]):
        assert f"images #{number}: {colour}" in done.stdout
    assert "captured 3 = processed 3 + superseded 0 + failed 0" in done.stdout


def test_a_part_that_is_not_installed_says_how_to_get_it(agent_env, tmp_path):
    done = run(str(agent_env / "skerry"), "compile", "x.py:build", ok=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "pip install 'skerry[compiler]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_looking_needs_no_extra_at_all(wheel, tmp_path):
    bin_folder = environment(tmp_path / "bare", sys.executable, str(wheel))
    shown = run(
        str(bin_folder / "skerry"), "inspect", str(RELEASED / "bundle"), "--trust", str(RELEASED / "signer.pub")
    )
    assert "released@1" in shown.stdout
    doctor = run(str(bin_folder / "skerry"), "doctor", ok=False, cwd=tmp_path)
    assert doctor.returncode == 1
    assert "pip install 'skerry[agent]'" in doctor.stdout
    missing = run(str(bin_folder / "skerry"), "agent", "status", ok=False, cwd=tmp_path)
    assert missing.returncode in (1, 2)
    assert "Traceback" not in missing.stderr


def test_the_agents_own_tests_pass_on_the_oldest_python_it_promises(wheel, tmp_path):
    bin_folder = environment(tmp_path / "env", interpreter("3.10"), f"{wheel}[agent]", *OLDEST_NEEDS)
    suites = [str(ROOT / "tests" / name) for name in ("skerry", "execution", "edge_agent", "crash", "formats")]
    pytest_options = ["-q", "-m", "not slow", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    # From another folder: what is tested is the wheel, not the checkout.
    done = run(str(bin_folder / "python"), "-m", "pytest", *pytest_options, *suites, ok=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_hub_and_an_operator_need_one_extra_each(wheel, tmp_path):
    hub_folder = environment(tmp_path / "hub", sys.executable, f"{wheel}[hub]")
    client_folder = environment(tmp_path / "client", sys.executable, f"{wheel}[client]")
    home = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "config"), "PATH": "/usr/bin:/bin"}
    serve = [
        str(hub_folder / "skerry"),
        "hub",
        "serve",
        "--data",
        str(tmp_path / "data"),
        "--port",
        "0",
        "--mqtt-port",
        "0",
    ]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=home, cwd=tmp_path) as hub:
        try:
            assert any("the hub is at" in line for line in hub.stdout)
            devices = run(str(client_folder / "skerry"), "fleet", "devices", env=home, cwd=tmp_path)
            assert "no devices yet" in devices.stdout
        finally:
            hub.terminate()
    assert hub.returncode == 0
