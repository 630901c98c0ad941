"""What `skerry inspect` says of a bundle: whatever the compiler found, of any version, without the compiler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import tiny

from skerry import inspect
from skerry.errors import MissingFile
from skerry.manifest import Accelerator, Requires

RELEASED = Path(__file__).parents[1] / "formats" / "bundle-1.0"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    tiny.Tiny().write(tmp_path / "tiny")
    return tmp_path / "tiny"


def with_evidence(bundle: Path, document: object, *, plan: bytes | None = None) -> Path:
    raw = document if isinstance(document, bytes) else msgspec.json.encode(document)
    (bundle / "evidence" / "compile.json").write_bytes(raw)
    if plan is not None:
        (bundle / "evidence" / "plan.json").write_bytes(plan)
    tiny.sign(bundle)
    return bundle


def said(capsys: pytest.CaptureFixture[str], bundle: Path, *options: str) -> list[str]:
    trust = tiny.write_keys(bundle.parent)
    assert inspect.main([str(bundle), "--trust", str(trust), *options]) == 0
    return capsys.readouterr().out.splitlines()


FULL = {
    "accuracy": [
        {"variant": "int8", "metric": "top-1", "samples": 500, "reference": 90.0, "value": 89.6}
        | {"drop": 0.4, "drop_at_most": 0.9, "budget": 0.5, "needs_more": 700}
    ],
    "search": [
        {"variant": "int8", "name": f"c{n}", "quantized": n, "units": 9, "drop": 0.1 * n, "times_fp32": 1 - 0.05 * n}
        | {"bytes": 10, "chosen": n == 3}
        for n in range(5)
    ],
    "layers": {
        "int8": [
            {"name": "stem", "kind": "Conv", "requested": "int8", "real": "int8", "sqnr_db": 31.25},
            {"name": "mean", "kind": "ReduceMean", "requested": "int8", "real": "fp32", "sqnr_db": None},
        ],
        "jetson": [{"name": "stem", "kind": "Conv", "requested": "fp16"}],
    },
    "repairs": [
        {"variant": "int8", "builds": 4, "mends": [{"kind": "keep", "where": ["n1"], "before_db": 3, "after_db": 21}]}
    ],
    "timings": [{"model": "int8", "median_ms": 2.0, "times_torch": 0.2, "times_fp32": 0.5, "times_fp32_at_most": 0.6}],
    "races": [{"variant": "int8-ov", "backend": "openvino", "beside": "int8", "times": 0.861, "times_at_most": 0.9}],
    "unmeasured": {"int8-vnni": "needs CPU feature vnni"},
    "left_out": {"int8-dotprod": "slower than fp32"},
    "lineage": {"weights": "ab" * 32},
    "passes": {
        "int8": [{"name": "load", "key": "1", "digest": "c" * 64}, {"name": "export", "key": "2", "digest": "d" * 64}]
    },
    "tools": {"torch": "2.13.0"},
    "calibration": {"frames": 150, "report_frames": 30, "digest": "e" * 64},
    "machine": ["x86_64", "avx2"],
    "max_latency_ms": 5.0,
    "hops": [{"name": "ONNX → int8", "frames": 30, "sqnr_db": 9.5, "limit_db": 15.0, "same": 20, "decided": 29}],
    "of a later version": {"unheard": "of"},
}


def test_everything_that_the_compiler_found_is_said(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, with_evidence(bundle, FULL))

    accuracy = (
        "accuracy   int8: top-1 89.60 % on 500 samples, fp32 90.00 %; loses 0.40 points, at most 0.90 (95 %), "
        "0.5 allowed"
    )
    search = "search     int8: 5 candidates measured; chosen: c3, 3 of 9 units quantized,"
    for line in (
        f"{accuracy}; cannot be shown, needs 700 more samples",
        f"{search} 0.85 x fp32, +0.30 points lost where it searched",
        "layers     int8: 2 int8; mean (ReduceMean) asked int8, runs fp32",
        "layers     jetson: 1 fp16 asked; what the runtime builds was not looked at",
        "mended     int8: keep n1 (3.0 → 21.0 dB)",
        "time       int8: 2.00 ms on one thread, 0.50 x fp32 (at most 0.60), 0.20 x torch",
        "beside     int8-ov: int8's file on openvino, 0.86 x its time (at most 0.90)",
        "unmeasured int8-vnni: needs CPU feature vnni",
        "frames     150 calibrate, 30 others judge the hops",
        "hop        ONNX → int8: 9.5 dB (limit 15), 20 of 29 answers agree",
        "time       5 ms were allowed (--max-latency)",
        "built on   x86_64 avx2",
        "left out   int8-dotprod: slower than fp32",
        "lineage    weights abababababababab",
        "passes     int8: load cccccccc → export dddddddd",
    ):
        assert line in lines
    assert not any(line.startswith("  stem") for line in lines)


def test_a_hop_that_failed_and_was_forced_says_so(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hop = {"name": "ONNX → int8", "sqnr_db": 3.0, "limit_db": 15.0, "failed": "conv1 diverges first"}

    lines = said(capsys, with_evidence(bundle, {"hops": [hop], "forced": ["ONNX → int8"]}))

    assert "hop        ONNX → int8: 3.0 dB (limit 15); FAILED: conv1 diverges first" in lines


def test_a_gain_on_these_samples_is_no_promise(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gained = FULL["accuracy"][0] | {"drop": -0.4, "drop_at_most": 0.3, "needs_more": None}

    lines = said(capsys, with_evidence(bundle, {"accuracy": [gained]}))

    assert any("gains 0.40 points on these, loses at most 0.30 (95 %), 0.5 allowed" in line for line in lines)


def test_what_a_variant_needs_is_said_with_the_gpu_and_the_system_that_it_was_made_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    orin = Accelerator(sm="8.7", at_least="10.3.0", below="11", l4t=["36.4"], system="jp6.2")
    requires = {"orin": Requires(arch=["aarch64"], accelerators=[orin]), "vnni": Requires(cpu=["vnni"])}
    made = tiny.Tiny(variants=dict.fromkeys(("fp32", "orin", "vnni"), tiny.model()), requires=requires)
    made.write(tmp_path / "tiny")

    lines = [line for line in said(capsys, tmp_path / "tiny") if line.startswith("variant")]

    assert [line.partition("needs ")[2] for line in lines] == [
        "any CPU",
        "aarch64, SM 8.7 with onnxrt 10.3.0 to below 11, jp6.2 (Jetson Linux 36.4)",
        "vnni",
    ]


def test_every_layer_is_listed_on_request(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, with_evidence(bundle, FULL), "--layers")

    rows = [line.split() for line in lines if line.startswith("  ")]
    assert ["stem", "Conv", "int8", "int8", "31.2", "dB"] in rows
    assert ["mean", "ReduceMean", "int8", "fp32", "-", "←", "not", "as", "asked"] in rows
    assert ["stem", "Conv", "fp16", "?", "-"] in rows


def test_the_plan_is_named_and_written_out(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_evidence(bundle, FULL, plan=b'{"seed": 1}')

    lines = said(capsys, bundle, "--plan", str(tmp_path / "plan.json"))

    assert any(line.startswith("plan       sha256") and "11 bytes" in line for line in lines)
    assert json.loads((tmp_path / "plan.json").read_bytes()) == {"seed": 1}


def test_a_plan_that_is_not_there_is_not_written(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"plan\.json"):
        inspect.main([str(bundle), "--unverified", "--plan", str(tmp_path / "plan.json")])


@pytest.mark.parametrize(
    "document", [b"not json", {"layers": 3}, {"hops": [{"name": "x"}]}], ids=["garbled", "other", "less"]
)
def test_evidence_that_this_version_cannot_read_is_said_to_be_there(
    bundle: Path, capsys: pytest.CaptureFixture[str], document: object
) -> None:
    lines = said(capsys, with_evidence(bundle, document))

    assert any("in a form that this version of Skerry does not know" in line for line in lines)
    assert any(line.startswith("variant    fp32") for line in lines)


def test_a_bundle_without_any_evidence_says_so(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (bundle / "evidence" / "compile.json").unlink()
    tiny.sign(bundle)

    assert "evidence   none" in said(capsys, bundle)


@pytest.mark.parametrize("folder", sorted(RELEASED.parent.glob("bundle-*")), ids=lambda folder: folder.name)
def test_every_released_bundle_is_still_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(folder / "bundle"), "--trust", str(folder / "signer.pub"), "--layers"]) == 0

    assert "released@1" in capsys.readouterr().out


def test_the_compiler_need_not_be_there(bundle: Path) -> None:
    """A machine that inspects may have nothing but the contracts."""
    with_evidence(bundle, FULL)
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'compiler', 'numpy', 'onnx', 'onnxruntime', 'rich', 'torch'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from skerry.main import main\n"
        f"sys.exit(main(['inspect', {str(bundle)!r}, '--unverified', '--layers']))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "runs fp32" in done.stdout
