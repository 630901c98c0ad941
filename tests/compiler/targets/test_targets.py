"""Targets as data: systems by name, what a variant asks of a device, and the command that tells it all."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from compiler.targets import cli, target
from skerry.errors import UsageError
from skerry.execution.device import l4t_release
from skerry.manifest import DeviceFacts, numbers, why_not

FACTS = DeviceFacts(arch="x86_64", cpu=[], backends=[])
JETSONS = [name for name in target.names() if name.startswith("jetson")]
CARDS = [name for name in target.names() if name.startswith("rtx")]


def facts_of(found):
    """Every fact that a target states, with what it is called."""
    gpu = found.gpu
    named = {} if gpu is None else {name: getattr(gpu, name) for name in gpu.__struct_fields__}
    return {name: fact for name, fact in named.items() if fact is not None}


def test_the_targets_that_the_issue_names_are_there():
    assert JETSONS == ["jetson-agx-orin", "jetson-orin-nano", "jetson-orin-nx", "jetson-thor"]
    assert CARDS == ["rtx-sm120", "rtx-sm75", "rtx-sm80", "rtx-sm86", "rtx-sm89"]


@pytest.mark.parametrize("name", target.names())
def test_every_fact_has_a_source(name):
    found = target.load(name, FACTS)

    for fact in facts_of(found).values():
        assert len(fact.source) > 10
    for stated in [*found.system, *found.variant]:
        assert len(stated.source) > 10


@pytest.mark.parametrize("name", target.names())
def test_every_target_has_a_variant_that_needs_no_gpu(name):
    """It is the reference of the proof, and what runs where TensorRT does not."""
    first = target.load(name, FACTS).variant[0]

    assert (first.id, first.backend, first.precision) == ("fp32", "onnxrt", "fp32")


@pytest.mark.parametrize("name", [*JETSONS, *CARDS])
def test_int8_for_tensorrt_is_explicit_and_the_rest_is_float(name):
    for plan in target.load(name, FACTS).variant:
        assert plan.layout == ("explicit" if plan.precision == "int8" else "float")


@pytest.mark.parametrize("name", JETSONS)
def test_a_systems_tensorrt_lies_in_its_own_range(name):
    for system in target.load(name, FACTS).system:
        assert numbers(system.tensorrt) < numbers(system.below)
        assert system.l4t


def test_one_system_by_name():
    (system,) = target.load("jetson-orin-nano@jp6.2", FACTS).system

    assert (system.name, system.tensorrt, system.below, system.cuda) == ("jp6.2", "10.3.0", "11", "12.6")


@pytest.mark.parametrize("name", ["jetson-orin-nano@jp9.9", "jetson-thor@jp6.2", "x86-64@jp6.2"])
def test_an_unknown_system_is_refused_with_the_list(name):
    with pytest.raises(UsageError, match=r"knows no 'jp\d\.\d'; .*(there are: .*@jp7\.0|@jp6\.2|it has no)"):
        target.load(name, FACTS)


def test_without_a_system_a_target_is_for_all_that_its_variants_run_on():
    names = [system.name for system in target.load("jetson-orin-nano", FACTS).system]

    assert names == ["jp6.1", "jp6.2", "jp7.2"]  # those before are known by name alone, to be refused


def test_a_file_of_ones_own_takes_a_system_too(tmp_path):
    text = (target._FOLDER / "jetson-thor.toml").read_text()
    (tmp_path / "mine.toml").write_text(text)

    assert target.load(f"{tmp_path / 'mine.toml'}@jp7.1", FACTS).system[0].name == "jp7.1"


def test_what_a_variant_asks_of_a_device():
    found = {plan.id: requires for plan, requires in target.plans([target.load("jetson-orin-nano@jp6.2", FACTS)])}

    assert found["fp32"].arch == []
    assert not found["fp32"].accelerators
    (wanted,) = found["orin-int8"].accelerators
    assert (wanted.sm, wanted.system, wanted.l4t) == ("8.7", "jp6.2", ["36.4.3", "36.4.4", "36.4.7", "36.5"])
    orin = DeviceFacts(
        arch="aarch64", cpu=[], backends=["tensorrt"], sm="8.7", l4t="36.4.3", versions={"tensorrt": "10.3.0.30"}
    )
    assert why_not("tensorrt", found["orin-int8"], orin) is None
    kept_up_to_date = msgspec.structs.replace(orin, l4t="36.4.7")  # apt upgrade takes JetPack 6.2.1 there
    assert why_not("tensorrt", found["orin-int8"], kept_up_to_date) is None
    assert "needs SM 8.7" in why_not("tensorrt", found["orin-int8"], msgspec.structs.replace(orin, sm="8.6"))


def test_a_variant_that_two_targets_share_is_for_either_and_modest():
    names = ["jetson-agx-orin@jp7.2", "jetson-orin-nano@jp6.2"]

    plans = {plan.id: (plan, requires) for plan, requires in target.plans([target.load(n, FACTS) for n in names])}

    assert list(plans) == ["fp32", "orin-fp16", "orin-int8"]
    plan, requires = plans["orin-int8"]
    assert [a.system for a in requires.accelerators] == ["jp7.2", "jp6.2"]
    assert plan.build.workspace_mib == 512  # of the smaller one


def test_each_card_has_variants_of_its_own():
    plans = target.plans([target.load(name, FACTS) for name in CARDS])

    assert len(plans) == 1 + 2 * len(CARDS)
    assert {a.sm for _, r in plans for a in r.accelerators or []} == {"7.5", "8.0", "8.6", "8.9", "12.0"}


@pytest.mark.parametrize(
    ("text", "release"),
    [
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan", "36.4.3"),
        ("# R39 (release), REVISION: 2.0, GCID: 1", "39.2.0"),
        ("Debian GNU/Linux", None),
        ("", None),
    ],
)
def test_the_release_of_jetson_linux_as_the_device_writes_it(text, release):
    assert l4t_release(text) == release


# The command


def test_the_command_tells_every_target_in_short(capsys):
    assert cli.main([]) == 0

    said = capsys.readouterr().out
    for name in target.names():
        assert name in said
    assert "SM 8.7; on @jp6.1, @jp6.2, @jp7.2" in said


@pytest.mark.parametrize("name", target.names())
def test_the_command_tells_one_in_full_with_every_source(name, capsys):
    assert cli.main([name]) == 0

    said = capsys.readouterr().out
    found = target.load(name, FACTS)
    for stated in [*found.system, *found.variant, *facts_of(found).values()]:
        assert stated.source in said


def test_the_command_refuses_what_it_does_not_know():
    with pytest.raises(UsageError, match=r"unknown target 'toaster'; there are: native, .*jetson-agx-orin"):
        cli.main(["toaster"])


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ("jetson-orin", "did you mean jetson-agx-orin or jetson-orin-nano or jetson-orin-nx?"),
        ("Jetson-Orin-Nano", "did you mean jetson-orin-nano?"),
        ("rtx-sm90", "did you mean rtx-sm"),
        ("x86", "did you mean x86-64 or x86-64-vnni?"),
        ("jetson-orin-nano@jp6.2.1", "did you mean jp6.2"),
        ("jetson-xavier-nx", "JetPack 5.1, with TensorRT 8.5, and TensorRT 10.3 is the oldest; arm64 is for its CPU"),
        ("jetson-nano", "JetPack 4.6, with TensorRT 8.2"),
    ],
)
def test_an_unknown_name_gets_the_nearest(wrong, hint):
    with pytest.raises(UsageError) as refused:
        target.load(wrong, FACTS)

    assert hint in str(refused.value)


def test_the_command_loads_no_torch_and_nothing_that_runs_models():
    script = (
        "import sys; from skerry.main import main; main(['targets']); main(['targets', 'jetson-thor']); "
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip().endswith("[]")
    assert "jetson-thor: NVIDIA Jetson Thor" in done.stdout
