"""A ``.pt2`` file is opened without letting it run anything: plain programs pass, everything else is refused."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from compiler.child import program
from compiler.child.foreign_entry import Value
from skerry.errors import CompileError, FormatError, SkerryError

pytestmark = pytest.mark.slow  # exports with torch


class Net(torch.nn.Module):
    """With weights, a buffer, a constant, and a batch that may vary."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.table = torch.ones(4)

    def forward(self, x):
        y = torch.nn.functional.gelu(self.norm(self.conv(x)), approximate="tanh") + self.table[:, None, None]
        return torch.einsum("nchw,c->nc", y, self.table).reshape(x.shape[0], -1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    varies = ({0: torch.export.Dim("batch", min=1, max=8)},)
    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=varies), path)
    return path


def test_an_image_in_another_precision_is_refused_before_torch_sees_it(tmp_path):
    exported = torch.export.export(torch.nn.ReLU().eval(), (torch.zeros(1, 3, 8, 8, dtype=torch.float16),))
    torch.export.save(exported, tmp_path / "half.pt2")

    with pytest.raises(CompileError, match="'input' is float16; expected float32"):
        program.describe(tmp_path / "half.pt2")


@pytest.fixture
def mark(tmp_path):
    """A file that must never be written."""
    return tmp_path / "written"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self):
        return Path.write_text, (self._mark, "caught")


def rewrite(source, target, change):
    """A copy of an archive; ``change`` may bend its parts, by name without the first folder."""
    with zipfile.ZipFile(source) as archive:
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(parts)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        for name, data in parts.items():
            out.writestr(f"net/{name}", data)
    return target


def edit(parts, name, change):
    document = json.loads(parts[name])
    change(document)
    parts[name] = json.dumps(document).encode()


GRAPH, WEIGHTS, CONSTANTS = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
SAMPLES = "data/sample_inputs/model.pt"


def test_a_program_says_what_goes_in_and_how_much_comes_out(saved):
    assert program.describe(saved) == program.Program(
        Value("x", "float32", [None, 3, 8, 8]), [Value("reshape", "float32", [None, 4])]
    )


def test_what_is_loaded_computes_what_was_saved(saved, tmp_path):
    program.clean(saved, tmp_path / "clean.pt2")
    image = torch.rand(5, 3, 8, 8)

    found = torch.export.load(tmp_path / "clean.pt2").module()(image)

    assert torch.equal(found, torch.export.load(saved).module()(image))


def pickled(mark):
    buffer = io.BytesIO()
    torch.save(Bomb(mark), buffer)
    return buffer.getvalue()


def test_the_bomb_goes_off_where_nobody_looks(saved, tmp_path, mark):
    """torch itself runs it: so the tests below do test something."""
    bad = rewrite(saved, tmp_path / "bad.pt2", lambda parts: parts.update({SAMPLES: pickled(mark)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):  # by then it is too late
            torch.export.load(bad)
    assert mark.read_text() == "caught"


def test_sample_inputs_are_not_even_looked_at(saved, tmp_path, mark):
    bad = rewrite(saved, tmp_path / "bad.pt2", lambda parts: parts.update({SAMPLES: pickled(mark)}))

    program.clean(bad, tmp_path / "clean.pt2")
    torch.export.load(tmp_path / "clean.pt2")

    assert not mark.exists()


def with_pickle(where, file):
    def change(parts, mark):
        def mark_as_pickle(document):
            first = next(iter(document["config"].values()))
            first.update(use_pickle=True, path_name=file)

        edit(parts, where, mark_as_pickle)
        folder = where.rpartition("/")[0]
        parts[f"{folder}/{file}"] = pickle.dumps(Bomb(mark)) if "opaque" in file else pickled(mark)

    return change


def with_size(text):
    def change(parts, mark):
        def bend(document):
            values = document["graph_module"]["graph"]["tensor_values"]
            size = next(v for v in values.values() if v["sizes"] and "as_expr" in v["sizes"][0])["sizes"][0]["as_expr"]
            size["expr_str"] = text.replace("MARK", str(mark))

        edit(parts, GRAPH, bend)

    return change


def with_node(**fields):
    def change(parts, _mark):
        edit(parts, GRAPH, lambda document: document["graph_module"]["graph"]["nodes"][0].update(fields))

    return change


def with_argument(arg, name="x"):
    def change(parts, mark):
        bent = {"name": name, "arg": json.loads(json.dumps(arg).replace("MARK", str(mark))), "kind": 1}
        edit(parts, GRAPH, lambda d: d["graph_module"]["graph"]["nodes"][0]["inputs"].append(bent))

    return change


REFUSED = {
    "a pickled weight": (with_pickle(WEIGHTS, "weight_0"), "stored as more than a plain tensor"),
    "a pickled constant": (with_pickle(CONSTANTS, "tensor_0"), "stored as more than a plain tensor"),
    "a custom object": (with_pickle(CONSTANTS, "custom_obj_0"), "stored as more than a plain tensor"),
    "an opaque object": (with_pickle(CONSTANTS, "opaque_obj_0"), "stored as more than a plain tensor"),
    "a path out of the archive": (with_pickle(WEIGHTS, "../../weight_0"), "stored as more than a plain tensor"),
    "code for a size": (with_size("__import__('pathlib').Path('MARK').write_text('caught')"), "expected arithmetic"),
    "an attribute of a size": (with_size("Symbol('s1').__class__"), "expected arithmetic"),
    "a call of a call": (with_size("Symbol('s1')('s2')"), "expected arithmetic"),
    "a size that goes on and on": (with_size("(" * 900 + "s1" + ")" * 900), "expected arithmetic"),
    "text in a symbol": (with_size("Symbol('__import__(1)')"), "expected arithmetic"),
    "another function": (with_node(target="torch.load"), "calls torch.load"),
    "a way around": (with_node(target="torch.ops.aten.relu.__globals__"), "calls torch.ops.aten.relu.__globals__"),
    "a stranger's operator": (with_node(target="torch.ops.mine.run.default"), "calls torch.ops.mine.run.default"),
    "a file as an operator": (with_node(target="torch.ops.aten.from_file.default"), "calls torch.ops.aten.from_file"),
    "a path as an argument": (with_argument({"as_string": "MARK"}), "expected a mode"),
    "an operator as an argument": (with_argument({"as_operator": "torch.load"}), "holds 'operator'"),
    "a graph as an argument": (with_argument({"as_graph": {}}), "holds 'graph'"),
    "training": (with_argument({"as_bool": True}, "training"), "exported in training mode"),
    "no graph": (lambda parts, _: parts.update({GRAPH: b"{}"}), "is damaged"),
    "no JSON": (lambda parts, _: parts.update({GRAPH: b"\xff\x00"}), "is not JSON"),
    "deep JSON": (lambda parts, _: parts.update({GRAPH: b"[" * 100_000}), "is damaged"),
    "no weights listed": (lambda parts, _: parts.update({WEIGHTS: b"[]"}), "does not list its tensors"),
    "weights lost": (lambda parts, _: parts.pop("data/weights/weight_0"), "is damaged"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_more_than_a_plain_program_is_refused_and_never_runs(name, saved, tmp_path, mark):
    change, said = REFUSED[name]
    bad = rewrite(saved, tmp_path / "bad.pt2", lambda parts: change(parts, mark))

    with pytest.raises((FormatError, CompileError), match=said):
        program.clean(bad, tmp_path / "clean.pt2")

    assert not mark.exists()


def test_guards_and_notes_stay_behind(saved, tmp_path):
    def plant(parts):
        def bend(document):
            document["guards_code"] = ["open('/nowhere')"]
            document["graph_module"]["graph"]["nodes"][0]["metadata"]["source_fn_stack"] = "x,os.system"

        edit(parts, GRAPH, bend)

    program.clean(rewrite(saved, tmp_path / "bad.pt2", plant), tmp_path / "clean.pt2")

    with zipfile.ZipFile(tmp_path / "clean.pt2") as archive:
        document = json.loads(archive.read(f"program/{GRAPH}"))
    assert document["guards_code"] == []
    assert set(document["graph_module"]["graph"]["nodes"][0]["metadata"]) <= {"nn_module_stack"}


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"no zip"), "is not a .pt2 file"),
        (lambda path: torch.save({"w": torch.ones(2)}, path), "holds weights alone"),
        (lambda path: torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(2)), str(path)), "it is TorchScript"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "is not a .pt2 file"),
    ],
    ids=["bytes", "weights", "TorchScript", "empty"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_files_are_told_apart(make, said, tmp_path):
    make(tmp_path / "net.pt2")

    with pytest.raises(FormatError, match=said):
        program.describe(tmp_path / "net.pt2")


def test_an_archive_cut_anywhere_is_refused(saved, tmp_path):
    raw = saved.read_bytes()
    for share in range(1, 20):
        (tmp_path / "cut.pt2").write_bytes(raw[: len(raw) * share // 20])
        with pytest.raises(SkerryError):
            program.clean(tmp_path / "cut.pt2", tmp_path / "clean.pt2")
