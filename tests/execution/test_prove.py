"""How a proof is judged, and how its child lives and dies: whatever a model does there, the parent has its answer."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from skerry.execution import prove
from skerry.execution.onnxrt import OnnxrtBackend
from skerry.execution.parity import CLEAN_DB
from skerry.manifest import FLOOR, Limits, tighter
from skerry.wire import ProofReport

# --- judging -------------------------------------------------------------------------------------------------------

LIMITS = Limits(min_input_sqnr_db=40.0, min_sqnr_db=15.0, min_agreement=0.9, min_margin=0.2, max_time_ratio=2.0)


def report(**measured):
    """A report of a variant that reaches `LIMITS` exactly, but for what was ``measured``."""
    values = {
        "release": "0" * 64,
        "variant": "int8",
        "backend": "onnxrt",
        "provider": "CPUExecutionProvider",
        "version": "1.0",
        "threads": 1,
        "input_sqnr_db": 40.0,
        "sqnr_db": 15.0,
        "same": 9,
        "decided": 10,
        "time_ms": 5.0,
        "time_ratio": 2.0,
        "peak_mib": 80.0,
    }
    return ProofReport(**{**values, **measured})


def test_who_reaches_every_limit_is_not_refused():
    assert prove.judge(report(), LIMITS) is None
    assert prove.judge(report(input_sqnr_db=CLEAN_DB, sqnr_db=CLEAN_DB, same=10, time_ratio=0.1), LIMITS) is None


def test_a_time_that_was_not_compared_is_not_judged():
    assert prove.judge(report(time_ratio=None), LIMITS) is None


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ({"input_sqnr_db": 39.9}, ["pre-processing", "39.9 dB", "40.0", "colour order, mean, std and resize"]),
        ({"input_sqnr_db": -CLEAN_DB}, ["pre-processing", "-200.0 dB"]),
        ({"sqnr_db": 14.9}, ["outputs differ from fp32", "14.9 dB", "15.0"]),
        ({"same": 8}, ["answers differ from fp32", "8 of 10", "90%"]),
        ({"same": 0, "decided": 0}, ["answers differ from fp32", "0 of 0"]),
        ({"time_ratio": 2.01}, ["2.01 times as long as fp32", "2.00"]),
    ],
)
def test_who_misses_one_limit_is_refused_with_what_was_measured_and_what_was_wanted(measured, words):
    why = prove.judge(report(**measured), LIMITS)
    assert all(word in why for word in words), why


LIMIT_VALUES = st.builds(
    Limits,
    min_input_sqnr_db=st.floats(-300, 300),
    min_sqnr_db=st.floats(-300, 300),
    min_agreement=st.floats(0, 1),
    min_margin=st.floats(0, 1),
    max_time_ratio=st.floats(0, 1e6),
)
REPORTS = st.builds(
    report,
    input_sqnr_db=st.floats(-200, 200),
    sqnr_db=st.floats(-200, 200),
    same=st.integers(0, 10),
    time_ratio=st.floats(0, 10),
)


@settings(deadline=None)
@given(REPORTS, LIMIT_VALUES, LIMIT_VALUES)
def test_the_tighter_of_two_limits_refuses_what_either_refuses(measured, ours, theirs):
    either = prove.judge(measured, ours) is not None or prove.judge(measured, theirs) is not None
    assert (prove.judge(measured, tighter(ours, theirs)) is not None) == either
    assert tighter(ours, theirs) == tighter(theirs, ours)
    assert tighter(ours, ours) == ours


def test_the_fastest_of_the_proved_is_chosen():
    slow, fast = report(variant="fp32", time_ms=9.0), report(variant="int8", time_ms=4.0)
    assert prove.conclude([slow, fast]) == prove.Outcome((slow, fast), variant="int8")
    assert prove.conclude([fast, slow]).variant == "int8"


def test_one_variant_that_fails_refuses_the_release_though_another_proved():
    good, bad = report(variant="fp32", time_ms=9.0), report(variant="int8", time_ms=4.0, refused="it lies")
    outcome = prove.conclude([good, bad])
    assert outcome == prove.Outcome((good, bad), why="variant int8: it lies", verdict=True)


# --- what a child's end says ---------------------------------------------------------------------------------------


def test_a_child_that_ends_well_says_which_variant_proved():
    stdout = msgspec.json.encode([report(variant="fp32")])
    assert prove.interpret(0, stdout, b"a warning of a library\n").variant == "fp32"


@pytest.mark.parametrize("stdout", [b"", b"{}", b"[1]", b"hello", b'[{"variant": "fp32"}]'])
def test_an_answer_that_cannot_be_read_proves_nothing(stdout):
    outcome = prove.interpret(0, stdout, b"")
    assert (outcome.variant, outcome.verdict) == (None, True)
    assert "cannot be read" in outcome.why


def test_an_answer_about_no_variant_proves_nothing():
    outcome = prove.interpret(0, b"[]", b"")
    assert outcome.variant is None
    assert outcome.why


def test_the_last_line_of_what_a_failed_child_said_is_the_reason():
    outcome = prove.interpret(1, b"", b"Traceback\n  somewhere\nfp32: it does not load\n")
    assert outcome == prove.Outcome(why="fp32: it does not load", verdict=True)
    assert prove.interpret(1, b"", b"").why == "it said nothing"
    assert len(prove.interpret(1, b"", b"\xff" * 5000).why) <= 300


def test_a_child_that_asked_for_too_much_memory_says_so():
    outcome = prove.interpret(prove._OUT_OF_MEMORY, b"", b"more than 512 MiB\n")
    assert outcome.verdict
    assert outcome.why == "the model needs more memory than its proof may have: more than 512 MiB"


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGBUS", "SIGILL", "SIGABRT", "SIGFPE", "SIGSYS"])
def test_a_crash_is_a_verdict(name):
    outcome = prove.interpret(-signal.Signals[name], b"", b"")
    assert outcome == prove.Outcome(why=f"the model crashed its proof ({name})", verdict=True)


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_a_child_that_somebody_killed_says_nothing_about_the_release(name):
    outcome = prove.interpret(-signal.Signals[name], b"", b"")
    assert outcome == prove.Outcome(why=f"the proof was killed ({name})", verdict=False)


@settings(deadline=None)
@given(st.integers(-64, 255), st.binary(max_size=50), st.binary(max_size=50))
def test_every_end_has_a_meaning(returncode, stdout, stderr):
    outcome = prove.interpret(returncode, stdout, stderr)
    assert outcome.variant is None
    assert outcome.why


# --- the child -----------------------------------------------------------------------------------------------------


def request(root, **asked):
    values = {"variants": ["fp32"], "limits": FLOOR, "threads": 1, "memory_mib": 256}
    return prove.Request(**{"root": str(root), **values, **asked})


def prove_it(root, timeout_s=30.0, **asked):
    """Starts the child, waits and interprets, as the compiler does."""
    return prove.run(request(root, **asked), timeout_s)


@contextlib.contextmanager
def proving(root, **asked):
    """A running proof, bound by its limits; killed on the way out."""
    pipe = subprocess.PIPE
    with subprocess.Popen(prove.command(), stdin=pipe, stdout=pipe, stderr=pipe, env=prove.environment()) as child:
        try:
            child.stdin.write(msgspec.json.encode(request(root, **asked)))
            child.stdin.close()
            wait_until(lambda: is_bound(child.pid))
            yield child
        finally:
            child.kill()


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_bound(pid):
    return Path(f"/proc/{pid}/oom_score_adj").read_text().strip() == "1000"


def status(pid):
    """The numbers of the kernel's words about a process; sizes in MiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.endswith(" kB")}
    return {**sizes, "Threads": next(int(line.split()[1]) for line in lines if line.startswith("Threads"))}


def test_the_honest_release_proves_and_the_report_says_what_ran(tmp_path):
    release = tiny.Tiny().write(tmp_path / "tiny")
    outcome = prove_it(tmp_path / "tiny")
    assert (outcome.variant, outcome.verdict, outcome.why) == ("fp32", False, "")
    (found,) = outcome.reports
    assert (found.release, found.variant, found.refused) == (release, "fp32", None)
    assert (found.backend, found.provider, found.threads) == ("onnxrt", "CPUExecutionProvider", 1)
    assert found.input_sqnr_db == CLEAN_DB
    assert found.sqnr_db > 80
    assert (found.same, found.decided) == (6, 6)
    assert found.time_ratio == 1
    assert 0 < found.time_ms < 100


def test_a_proof_leaves_the_release_as_it_was(tmp_path):
    tiny.Tiny().write(tmp_path / "tiny")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    prove_it(tmp_path / "tiny")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_callers_folder_and_environment_do_not_reach_the_child(tmp_path):
    tiny.Tiny().write(tmp_path / "tiny")
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')")
    done = subprocess.run(
        prove.command(),
        input=msgspec.json.encode(request(tmp_path / "tiny")),
        capture_output=True,
        env={**prove.environment(), "PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "numpy.py")},
        cwd=tmp_path,
        check=False,
    )
    assert prove.interpret(done.returncode, done.stdout, done.stderr).variant == "fp32"


def test_the_memory_in_a_report_is_the_childs_own(tmp_path):
    """A parent that is large when it starts the child is not the model's fault."""
    tiny.Tiny().write(tmp_path / "tiny")
    ballast = np.ones(300 << 20, np.uint8)
    (found,) = prove_it(tmp_path / "tiny").reports
    assert ballast.all()
    assert 20 < found.peak_mib < 250


def hanging(folder):
    tiny.Tiny(variants={"fp32": tiny.endless()}).write(folder)
    return folder


def test_a_model_that_hangs_is_a_verdict_and_takes_no_longer_than_it_may(tmp_path):
    started = time.monotonic()
    outcome = prove_it(hanging(tmp_path / "tiny"), timeout_s=1.0)
    assert time.monotonic() - started < 3
    assert outcome == prove.Outcome(why="its proof did not end within 1 s", verdict=True)


def test_a_proof_goes_last_keeps_to_its_threads_and_leaves_no_core(tmp_path):
    with proving(hanging(tmp_path / "tiny"), threads=2, memory_mib=256) as child:
        wait_until(lambda: status(child.pid)["Threads"] > 1)
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, child.pid) == min(ours + 10, 19)
        assert status(child.pid)["Threads"] == 2
        limits = Path(f"/proc/{child.pid}/limits").read_text().splitlines()
        assert next(line for line in limits if line.startswith("Max core file size")).split()[4:6] == ["0", "0"]
        data = next(line for line in limits if line.startswith("Max data size")).split()
        assert data[3] == data[4]  # it cannot raise it again
        assert int(data[3]) < 512 << 20


def test_a_proof_dies_with_whoever_started_it(tmp_path):
    start = (
        "import subprocess, sys, time; from skerry.execution import prove;"
        "child = subprocess.Popen(prove.command(), stdin=subprocess.PIPE, env=prove.environment());"
        "child.stdin.write(sys.stdin.buffer.read()); child.stdin.close();"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdin.write(msgspec.json.encode(request(hanging(tmp_path / "tiny"))))
        parent.stdin.close()
        pid = int(parent.stdout.readline())
        wait_until(lambda: is_bound(pid))
        parent.kill()
    wait_until(lambda: is_dead(pid), seconds=3)


def is_dead(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith(("Z", "X"))
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_running_proof_that_is_ended_by_a_signal(tmp_path, name):
    with proving(hanging(tmp_path / "tiny")) as child:
        child.send_signal(signal.Signals[name])
        stdout, stderr = child.stdout.read(), child.stderr.read()
    outcome = prove.interpret(child.returncode, stdout, stderr)
    assert outcome.variant is None
    assert name in outcome.why
    assert outcome.verdict == (name == "SIGSEGV")


# --- models that eat and models that crash -------------------------------------------------------------------------


def too_deep(depth=8000):
    """A chain of functions that call one another: ONNX Runtime follows it on its stack, which a few thousand use up."""
    model = tiny.model([helper.make_node("f0", ["image"], ["deep"], domain="deep")], "deep")
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("deep", 1)]
    model.opset_import.append(opsets[1])
    for number in range(depth):
        last = number == depth - 1
        call = helper.make_node("Relu", ["x"], ["y"]) if last else helper.make_node(f"f{number + 1}", ["x"], ["y"])
        call.domain = "" if last else "deep"
        model.functions.append(helper.make_function("deep", f"f{number}", ["x"], ["y"], [call], opsets))
    return model


def undividable():
    """Divides the lowest whole number by -1, which an x86 CPU answers with a trap; made from the image, in a run."""
    nodes = [
        helper.make_node("Cast", ["image"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Mul", ["whole", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "lowest"], ["dividend"]),
        helper.make_node("Add", ["nothing", "minus_one"], ["divisor"]),
        helper.make_node("Div", ["dividend", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["fed"], to=TensorProto.FLOAT),
    ]
    values = {"zero": 0, "lowest": -(2**63), "minus_one": -1}
    return tiny.model(nodes, "fed", [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in values.items()])


on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="other CPUs do not trap this division")
on_a_usual_stack = pytest.mark.skipif(
    not 0 < resource.getrlimit(resource.RLIMIT_STACK)[0] <= 16 << 20, reason="the stack is larger than 16 MiB"
)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        pytest.param(too_deep, "SIGSEGV", marks=on_a_usual_stack),
        pytest.param(undividable, "SIGFPE", marks=on_x86),
    ],
)
def test_a_model_that_crashes_is_a_verdict_and_the_one_in_service_answers_on(tmp_path, model, name):
    tiny.Tiny().write(tmp_path / "good")
    tiny.Tiny(variants={"fp32": model()}).write(tmp_path / "bad")
    in_service = OnnxrtBackend(tmp_path / "good" / "variants" / "fp32" / "model.onnx", threads=1)
    in_service.inputs["image"][...] = 0.5
    answer = in_service.run()["scores"].copy()
    files = len(list(Path("/proc/self/fd").iterdir()))
    outcome = prove_it(tmp_path / "bad")
    assert outcome == prove.Outcome(why=f"the model crashed its proof ({name})", verdict=True)
    np.testing.assert_array_equal(in_service.run()["scores"], answer)
    assert len(list(Path("/proc/self/fd").iterdir())) == files
    assert prove_it(tmp_path / "good").variant == "fp32"


def folded(elements=1 << 30):
    """Four gigabytes that ONNX Runtime works out while it loads the model."""
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["image", "sum"], ["fed"]),
    ]
    return tiny.model(nodes, "fed", [numpy_helper.from_array(np.array([elements], np.int64), "many")])


@pytest.mark.parametrize("model", [tiny.greedy, folded])
def test_a_model_that_wants_four_gigabytes_is_a_verdict_and_does_not_get_them(tmp_path, model):
    tiny.Tiny(variants={"fp32": model()}).write(tmp_path / "tiny")
    peak = 0.0
    with proving(tmp_path / "tiny", memory_mib=256) as child:
        while child.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, KeyError):  # it is ending
                peak = max(peak, status(child.pid)["VmHWM"])
        stdout, stderr = child.stdout.read(), child.stderr.read()
    outcome = prove.interpret(child.returncode, stdout, stderr)
    assert outcome.why.startswith("the model needs more memory than its proof may have: more than 256 MiB")
    assert outcome.verdict
    assert 20 < peak < 256 + 150, "the model's part, and that of Python and its libraries"


def test_many_small_portions_are_counted_too(tmp_path):
    """Sixty-four tensors of 16 MiB each, no two the same, all wanted at the end."""
    nodes = [helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0)]
    values = {"size": np.array([4 << 20], np.int64)}
    for number in range(64):
        values[f"number{number}"] = np.array(number, np.float32)
        nodes.append(helper.make_node("Add", ["sum", f"number{number}"], [f"value{number}"]))
        nodes.append(helper.make_node("Expand", [f"value{number}", "size"], [f"portion{number}"]))
    nodes += [
        helper.make_node("Max", [f"portion{number}" for number in range(64)], ["highest"]),
        helper.make_node("ReduceMax", ["highest"], ["top"], keepdims=0),
        helper.make_node("Add", ["image", "top"], ["fed"]),
    ]
    model = tiny.model(nodes, "fed", [numpy_helper.from_array(value, name) for name, value in values.items()])
    tiny.Tiny(variants={"fp32": model}).write(tmp_path / "tiny")
    assert "needs more memory than its proof may have" in prove_it(tmp_path / "tiny", memory_mib=256).why


def test_a_model_that_stays_within_its_memory_proves(tmp_path):
    tiny.Tiny(variants={"fp32": tiny.greedy(16 << 20)}).write(tmp_path / "tiny")  # 64 MiB
    assert prove_it(tmp_path / "tiny", memory_mib=256).variant == "fp32"


@pytest.mark.parametrize("memory_mib", [128, 136, 144])
def test_a_model_that_leaves_the_libraries_no_memory_is_told_apart_from_one_that_hangs(tmp_path, memory_mib):
    tiny.Tiny(variants={"fp32": tiny.greedy(25 << 20)}).write(tmp_path / "tiny")  # 100 MiB, in one piece
    outcome = prove_it(tmp_path / "tiny", timeout_s=20.0, memory_mib=memory_mib)
    assert outcome.variant == "fp32" or "needs more memory than its proof may have" in outcome.why, outcome.why
