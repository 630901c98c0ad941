"""What a release was made from, as digests: code, weights, the model's own files, recipe, calibration frames."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec

from compiler.candidate import file_digest
from compiler.data.samples import Samples
from compiler.sources.foreign import digests
from compiler.sources.recipe import Source
from skerry.errors import CompileError

_CODE = {".py", ".json", ".toml", ".yaml", ".yml", ".cfg", ".ini", ".txt"}
_MAX_SOURCE_FILES = 2000


def lineage(source: Source, samples: Samples) -> dict[str, str]:
    """SHA-256 by name of all that decides a release's bytes, but for the tools."""
    return {
        **origin(source),
        "recipe": hashlib.sha256(msgspec.json.encode(source.recipe)).hexdigest(),
        "calibration": samples.digest(),
    }


def origin(source: Source) -> dict[str, str]:
    """Digests of the code, the weights, and the model's own files, whichever there are."""
    found = {} if source.file is None else {f"file {name}": digest for name, digest in digests(source.file).items()}
    if source.file is None or source.recipe.model.preprocess:
        found["code"] = code_digest(source.root)
    if source.weights:
        found["weights"] = file_digest(source.weights)
    return found


def code_digest(root: Path) -> str:
    """Names the user's code: every file below its root that a builder is made of or reads, but for the recipe."""
    files = sorted(p for p in root.rglob("*") if p.suffix in _CODE and not _is_hidden(p.relative_to(root)))
    if len(files) > _MAX_SOURCE_FILES:
        raise CompileError(f"{root} holds {len(files)} files of code; point at the folder of the model alone")
    text = "\n".join(f"{p.relative_to(root).as_posix()} {file_digest(p)}" for p in files if p.name != "recipe.toml")
    return hashlib.sha256(text.encode()).hexdigest()


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
