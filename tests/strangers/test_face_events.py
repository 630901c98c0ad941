"""A real face in a real film, found by a real detector in a real agent: what it does becomes events in the file.

The truth is read off the film by the ONNX file that the detector's authors published, without Skerry.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import needs
import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image
from shell import STRANGERS, Shell

pytestmark = pytest.mark.slow

EDGE = 0.41  # of the picture's width: the driver's face starts to the right of it
_TARGET = """
description = "one variant"
arch = []
[[variant]]
id = "fp32"
backend = "onnxrt"
precision = "fp32"
layout = "float"
source = "a test on any CPU"
"""
_AGENT = """
data = "{data}"
trust = ["{trust}"]
[[sources]]
url = "{film}"
name = "car"
policy = "every"
queue = 400
[events]
when = "every"
jsonl = "{jsonl}"
terminal = false
[[zones]]
name = "left of it"
source = "car"
polygon = [[0.0, 0.0], [{edge}, 0.0], [{edge}, 1.0], [0.0, 1.0]]
anchor = "middle"
min_score = 0.5
dwell_s = 1.0
[[zones]]
name = "sky"
polygon = [[0.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 0.1]]
[[lines]]
name = "edge"
source = "car"
from = [{edge}, 0.0]
to = [{edge}, 1.0]
anchor = "middle"
"""


def truth(film: Path, net: Path) -> Iterator[tuple[float, float]]:
    """Of each frame, the middle of the surest face and half of its width, as fractions of the picture's."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # it lists its weights as inputs too, and is warned of each
    session = ort.InferenceSession(net, options, providers=["CPUExecutionProvider"])
    with av.open(str(film)) as container:
        for frame in container.decode(video=0):
            pixels = np.asarray(frame.to_image().resize((320, 240)), np.float32)
            scores, boxes = session.run(None, {"input": ((pixels - 127) / 128).transpose(2, 0, 1)[None]})
            x0, _, x1, _ = boxes[0, scores[0, :, 1].argmax()]
            yield float(x0 + x1) / 2, float(x1 - x0) / 2


def crossings(places: list[tuple[float, float]], still: int) -> list[str]:
    """Which way the middle goes over the edge for good: clearly, and for ``still`` frames."""
    sides = [0 if abs(x - EDGE) < half / 4 else 1 if x > EDGE else -1 for x, half in places]
    settled = [sides[n] for n in range(still, len(sides)) if len({*sides[n - still : n + 1]}) == 1 and sides[n]]
    return ["forward" if b > a else "backward" for a, b in pairwise(settled) if a != b]


@pytest.fixture
def bundle(data: Path, tmp_path: Path) -> tuple[Shell, Path]:
    """The published weights, compiled to a bundle that a shell's own key has signed."""
    home = tmp_path / "home"
    home.mkdir()
    shell, photos, target = Shell(home), tmp_path / "photos", tmp_path / "target.toml"
    portrait = Image.open(needs.asset("photos/astronaut.png")).convert("RGB")
    photos.mkdir()
    for number in range(40):
        portrait.crop((60 + number, 0, 400 - number, 300 - number)).save(photos / f"{number:02}.png")
    target.write_text(_TARGET)
    words = ["--weights", data / "face" / "version-RFB-320.pth", "--calib", photos, "--target", target]
    said = shell.skerry("compile", STRANGERS / "rfb320", *words, "-o", tmp_path / "face.skb")
    assert said.code == 0, said.err
    return shell, tmp_path / "face.skb"


def test_a_face_that_moves_enters_dwells_and_crosses_as_the_film_has_it(data, bundle, tmp_path):
    shell, release = bundle
    film = needs.asset("video/carphone_pristine.mp4")
    config, jsonl = tmp_path / "agent.toml", tmp_path / "events.jsonl"
    config.write_text(
        _AGENT.format(data=tmp_path / "device", trust=shell.public_key, film=film, jsonl=jsonl, edge=EDGE)
    )

    said = shell.skerry("agent", "run", "--config", config, "--model", release)

    assert said.code == 0, said.err
    events = [json.loads(line)["event"] for line in jsonl.read_text().splitlines()]
    seen = [event for event in events if event["kind"] == "seen"]
    told = [event for event in events if event["kind"] in ("entered", "dwelt", "left", "crossed")]
    places = list(truth(film, data / "face" / "version-RFB-320.onnx"))
    real = crossings(places, still=6)
    assert len(seen) == len(places)
    assert len(real) >= 1, "the film would show nothing"
    assert [e["direction"] for e in told if e["kind"] == "crossed"] == real
    assert {a["track"] for e in seen[1:] for a in e["answers"]} == {1}, "one face, one number"
    assert {(e["track"], e["label"], e["source"]) for e in told} == {(1, "face", "car")}
    assert all(e["zone"] == "left of it" for e in told if e["kind"] != "crossed")
    for event in told:  # in order, and with the frame that made it certain
        before = [e["frame"] for e in events[: events.index(event)] if e["kind"] == "seen"]
        assert before[-1] == event["frame"]
    stays = "".join({"entered": "E", "dwelt": "D", "left": "L", "crossed": ""}[e["kind"]] for e in told)
    assert stays.replace("D", "") in ("E", "EL", "ELE", "ELEL"), stays
    assert "D" in stays
