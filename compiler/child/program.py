"""Opening a ``.pt2`` file, an exported torch program, without letting it run anything.

``torch.export.load`` unpickles what fails to load as plain tensors, evaluates the text of symbolic sizes, and looks up
operators by any name. So it is never given a stranger's file. `clean` reads the archive as what it is, a zip of JSON
and raw tensors, holds every part to what a plain program consists of, and writes those parts alone into a new archive,
without sample inputs (a pickle), guards (code) and notes. Needs no torch.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skerry.errors import CompileError, FormatError

from .foreign_entry import ONE_IMAGE, Value

_MAX_BYTES = 16 << 30
_MAX_JSON = 256 << 20
_GRAPH = "models/model.json"
_CONFIGS = {"data/weights/": "model_weights_config.json", "data/constants/": "model_constants_config.json"}
_PART = re.compile(r"(archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id)\Z")
_TENSOR = re.compile(r"data/(weights/weight|constants/tensor)_[0-9]+\Z")
_OPERATOR = re.compile(
    r"(torch\.ops\.aten\.(?!__)[a-z0-9_]+(\.[A-Za-z][A-Za-z0-9_]*)?|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge)"
    r"|torch\.sym_(max|min|not|float))\Z"
)
_FILES = re.compile(r"torch\.ops\.aten\.(from_file|save|load|set_source)")  # operators that touch a disk
_SYMBOL = re.compile(r"[a-z]+[0-9]+\Z")
_LONGEST = 2000  # of a size's text
_WORD = re.compile(r"[A-Za-z0-9_]{0,32}\Z")  # as an argument: modes, "none", "tanh", "constant"
_EINSUM = re.compile(r"[A-Za-z., >-]{1,64}\Z")
_NOTE = re.compile(r"[A-Za-z0-9_.,;@ \[\]<>-]*\Z")
_ARGUMENT = re.compile(
    r"as_("
    r"none|bool|bools|int|ints|float|floats|string|scalar_type|memory_format|layout|device|tensor|"
    r"tensors|name|optional_tensor|optional_tensors|sym_int|sym_ints|sym_bool|sym_bools|sym_float|"
    r"sym_floats|expr|complex"
    r")\Z"
)
_FUNCTION = re.compile(
    r"("
    r"Symbol|Integer|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|"
    r"ModularIndexing|IntTrueDiv|PowByNatural|Eq|Ne|Lt|Le|Gt|Ge"
    r")\Z"
)
_EXPRESSION = (
    ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator,
    ast.unaryop, ast.Compare, ast.cmpop,
)  # fmt: skip

# torch's numbers for types in these files.
_TYPES = {1: "uint8", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 12: "bool", 13: "bfloat16"}

Json = Any


@dataclass(frozen=True)
class Program:
    """What a program says of itself: its one input, and what it gives back."""

    entry: Value
    exits: list[Value]


def describe(path: Path) -> Program:
    """Reads the signature.

    Raises:
        FormatError: not a ``.pt2`` file of torch 2.8 or newer, or one that holds more than a plain program does.
        CompileError: it takes something else than one image.
    """
    with _opened(path) as (archive, root):
        graph = _checked_graph(archive, root, path.name)["graph_module"]
    try:
        return _signature(graph, path.name)
    except (KeyError, TypeError, IndexError, AttributeError) as exc:
        raise FormatError(f"{path.name} does not say what goes in and out: {exc!r}") from exc


def clean(path: Path, target: Path) -> None:
    """Writes to ``target`` what ``path`` may hold, and nothing else. Raises as `describe`."""
    with _opened(path) as (archive, root), zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as out:
        graph = _checked_graph(archive, root, path.name)
        tensors = {folder + name for folder in _CONFIGS for name in _tensors(archive, root, folder, path.name)}
        kept = [name for name in _names(archive, root) if _PART.match(name)]
        for name in [*kept, *sorted(tensors), *(folder + config for folder, config in _CONFIGS.items())]:
            out.writestr(f"program/{name}", _read(archive, root, name, path.name))
        out.writestr(f"program/{_GRAPH}", json.dumps(graph))
        out.writestr("program/data/sample_inputs/model.pt", b"")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, str]]:
    """The archive and the name of its one folder."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, NotImplementedError) as exc:
        raise FormatError(f"{path.name} is not a .pt2 file: {exc}; expected one from torch.export.save") from exc
    with archive:
        items = archive.infolist()
        names, size = [item.filename for item in items], sum(item.file_size for item in items)
        root = names[0].partition("/")[0] if names else ""
        if f"{root}/{_GRAPH}" not in names or any(not name.startswith(f"{root}/") for name in names):
            raise FormatError(f"{path.name} is not a .pt2 file of torch 2.8 or newer{_instead(names)}")
        if any(item.compress_type != zipfile.ZIP_STORED for item in items) or size > _MAX_BYTES:
            raise FormatError(f"{path.name} is compressed or too large; torch.export.save writes neither")
        if len({*names}) != len(names):
            raise FormatError(f"{path.name} holds two files of one name")
        yield archive, root


def _instead(names: list[str]) -> str:
    """What the file is instead, where its parts tell."""
    together = " ".join(names)
    if "constants.pkl" in together or "/code/" in together:
        return ": it is TorchScript, which holds code; export with torch.export.save(torch.export.export(…), …)"
    if "serialized_exported_program" in together:
        return ": it was written by an older torch, with pickles in it; load it there and save it again"
    if "data.pkl" in together:
        return ": it holds weights alone; name the model's code, and this file with --weights"
    return ""


def _names(archive: zipfile.ZipFile, root: str) -> list[str]:
    return [name.removeprefix(f"{root}/") for name in archive.namelist()]


def _read(archive: zipfile.ZipFile, root: str, name: str, of: str) -> bytes:
    try:
        return archive.read(f"{root}/{name}")
    except (KeyError, zipfile.BadZipFile, EOFError, OSError) as exc:
        raise FormatError(f"{of} is damaged: {name}: {exc}") from exc


def _json(archive: zipfile.ZipFile, root: str, name: str, of: str) -> Json:
    raw = _read(archive, root, name, of)
    if len(raw) > _MAX_JSON:
        raise FormatError(f"{of}: {name} has {len(raw)} bytes: too large")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{of} is damaged: {name} is not JSON: {exc}") from exc


def _tensors(archive: zipfile.ZipFile, root: str, folder: str, of: str) -> Iterator[str]:
    """The files of raw tensors in a folder; refuses what would be unpickled."""
    config = _json(archive, root, folder + _CONFIGS[folder], of)
    entries = config.get("config") if isinstance(config, dict) else None
    if not isinstance(entries, dict):
        raise FormatError(f"{of} is damaged: it does not list its tensors")
    for name, entry in entries.items():
        file = entry.get("path_name") if isinstance(entry, dict) else None
        if not isinstance(file, str) or entry.get("use_pickle") is not False or not _TENSOR.match(folder + file):
            raise FormatError(
                f"{of}: {name[:60]!r} is stored as more than a plain tensor, and Skerry never unpickles code; make it "
                "a buffer of ordinary numbers, or compile the model from its code"
            )
        yield file


def _checked_graph(archive: zipfile.ZipFile, root: str, of: str) -> Json:
    program = _json(archive, root, _GRAPH, of)
    try:
        for node in program["graph_module"]["graph"]["nodes"]:
            _check_node(node, of)
        _check(program, of)
        for name in program["range_constraints"]:
            _check_expression(name, of)
    except (KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise FormatError(f"{of} is damaged: its graph has no {exc}") from exc
    return {**program, "guards_code": []}


def _check_node(node: Json, of: str) -> None:
    """Holds an operator and its text to what plain programs use; keeps of its notes only which module it came from."""
    target = node["target"]
    if not _OPERATOR.match(target) or _FILES.match(target):
        raise CompileError(f"{of} calls {target[:80]}; Skerry compiles programs of torch's own operators on tensors")
    for argument in node["inputs"]:
        text = argument["arg"].get("as_string")
        if text is not None and not (_EINSUM if "einsum" in target else _WORD).match(text):
            raise FormatError(f"{of}: {target} is given the text {text[:60]!r}; expected a mode")
        if argument["arg"].get("as_bool") is True and argument["name"] in ("train", "training"):
            raise CompileError(f"{of} was exported in training mode ({target}); call model.eval() before you export")
    stack = node["metadata"].get("nn_module_stack", "")
    node["metadata"] = {"nn_module_stack": stack} if stack and _NOTE.match(stack) else {}


def _check(value: Json, of: str) -> None:
    """Holds every argument to the kinds that are data, and every symbolic size to arithmetic."""
    if isinstance(value, list):
        for item in value:
            _check(item, of)
    if isinstance(value, dict):
        for key, item in value.items():
            if key.startswith("as_") and not _ARGUMENT.match(key):
                raise CompileError(f"{of} holds {key[3:]!r}, which is more than tensors and numbers")
            if key == "expr_str":
                _check_expression(item, of)
            _check(item, of)


def _check_expression(text: str, of: str) -> None:
    """Holds a size to arithmetic on symbols: torch evaluates it as Python."""
    try:
        nodes = [*ast.walk(ast.parse(text, mode="eval"))] if len(text) < _LONGEST else []
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        nodes = []
    if not nodes or not all(_is_arithmetic(node) for node in nodes):
        raise FormatError(f"{of}: a size is given as {text[:60]!r}; expected arithmetic")


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return bool(_FUNCTION.match(name) or _SYMBOL.match(name))
        case ast.Constant(value=str(text)):
            return _SYMBOL.match(text) is not None
        case ast.Call(func=function):
            return isinstance(function, ast.Name)
    return isinstance(node, _EXPRESSION)


def _signature(graph: Json, of: str) -> Program:
    specs, values = graph["signature"]["input_specs"], graph["graph"]["tensor_values"]
    entries = [spec["user_input"]["arg"] for spec in specs if "user_input" in spec]
    if len(entries) != 1 or "as_tensor" not in entries[0]:
        raise CompileError(f"{of} takes {len(entries)} inputs; {ONE_IMAGE}")
    entry = _value(entries[0], values)
    if entry.dtype != "float32":
        raise CompileError(f"{of}: {entry.name!r} is {entry.dtype}; expected float32: cast it inside the model")
    outputs = [spec["user_output"]["arg"] for spec in graph["signature"]["output_specs"] if "user_output" in spec]
    return Program(entry, [_value(output, values) for output in outputs])


def _value(argument: Json, values: Json) -> Value:
    if "as_tensor" not in argument:
        return Value(next(iter(argument)).removeprefix("as_"), "no tensor", [])
    name = argument["as_tensor"]["name"]
    sizes = [size.get("as_int") for size in values[name]["sizes"]]
    return Value(name, _TYPES.get(values[name]["dtype"], "of another type"), sizes)
