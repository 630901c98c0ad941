"""The nets that the benchmarks train and compile, as a user would hold them: a folder with code and a recipe.

The files beside this one are a user's: `folder` lays those of one net out, and nothing here imports them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks.results import OUT

_HERE = Path(__file__).parent
_CODE = {"resnet": ["resnet.py"], "resnet18": ["resnet.py"], "vit": ["vit.py"], "mobilenetv2": ["mobilenetv2.py"]}
_CODE |= {"small": ["prepare.py"], "cells": ["prepare.py"], "face": []}


def folder(name: str) -> Path:
    """A folder to compile: the recipe ``<name>.toml`` and the code that it names."""
    target = (OUT / "nets" / name).absolute()
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copy(_HERE / f"{name}.toml", target / "recipe.toml")
    for file in _CODE[name.rpartition("_")[2]]:
        shutil.copy(_HERE / file, target)
    if name.endswith("mobilenetv2"):
        shutil.copy("models/mobilenetv2/model.py", target)
    return target


def weights(name: str) -> Path:
    """Where training leaves them."""
    return (OUT / "weights" / f"{name}.pth").absolute()
