"""The privacy gate: nothing leaves that was not allowed, and nothing that must not be seen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.config import Mask, PrivacyConfig
from edge_agent.gate import LIVE_VIEW, SINKS, Gate, coarsen, covered
from edge_agent.mailbox import Captured
from skerry.clock import SystemClock
from skerry.errors import ConfigError
from skerry.wire import Answer

FACE = Answer("face", 0.4, (0.25, 0.25, 0.5, 0.75))


def frame(pixels: np.ndarray, source: str = "gate") -> Captured:
    return Captured(source, 0, 0.0, SystemClock().utc(), pixels)


def noise(height: int = 60, width: int = 80) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), np.uint8)  # never black by itself


@pytest.mark.parametrize("sink", [*SINKS, "another"])
def test_without_a_word_nothing_leaves(sink):
    gate = Gate(PrivacyConfig())
    assert not gate.allows(sink)
    assert gate.open(sink, frame(noise()), []) is None


def test_what_is_allowed_leaves_as_a_copy():
    pixels = noise()
    out = Gate(PrivacyConfig(allow=[LIVE_VIEW])).open(LIVE_VIEW, frame(pixels), [FACE])
    assert np.array_equal(out, pixels)
    assert not np.shares_memory(out, pixels)
    assert Gate(PrivacyConfig(allow=[LIVE_VIEW])).open("snapshot", frame(pixels), []) is None


def test_a_picture_that_shows_what_must_not_be_shown_stays():
    gate = Gate(PrivacyConfig(allow=[LIVE_VIEW], drop=["face"]))
    assert gate.open(LIVE_VIEW, frame(noise()), [FACE]) is None
    assert gate.open(LIVE_VIEW, frame(noise()), [Answer("car", 0.9, FACE.box)]) is not None
    assert gate.open(LIVE_VIEW, frame(noise()), None) is None, "the model has not looked"


def test_a_thing_to_blur_is_a_few_flat_cells_however_unsure_the_model_is():
    pixels = noise()
    out = Gate(PrivacyConfig(allow=[LIVE_VIEW], blur=["face"])).open(LIVE_VIEW, frame(pixels), [FACE])
    inside = out[15:45, 20:40].reshape(-1, 3)
    assert len(np.unique(inside, axis=0)) <= 16
    assert np.array_equal(out[:, :15], pixels[:, :15]), "what lies beside it stays"


def test_a_blurred_label_of_the_whole_frame_blurs_all_of_it():
    pixels = noise()
    coarsen(pixels, None)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) <= 16


corners = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(st.lists(corners, min_size=3, max_size=8), st.integers(2, 90), st.integers(2, 90))
def test_no_pixel_whose_middle_lies_in_a_mask_is_ever_shown(polygon, height, width):
    mask = Mask(source="gate", polygon=polygon)
    out = Gate(PrivacyConfig(allow=[LIVE_VIEW], masks=[mask])).open(LIVE_VIEW, frame(noise(height, width)), [])
    inside = np.array(
        [[_inside(polygon, (x + 0.5) / width, (y + 0.5) / height) for x in range(width)] for y in range(height)]
    )
    assert not out[inside].any()


def _inside(polygon: list[tuple[float, float]], x: float, y: float) -> bool:
    """By the even-odd rule."""
    odd = False
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if (y0 > y) != (y1 > y) and x < (x1 - x0) * (y - y0) / (y1 - y0) + x0:
            odd = not odd
    return odd


def test_a_mask_is_for_its_source_and_the_star_for_all():
    whole = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)]
    gate = Gate(PrivacyConfig(allow=[LIVE_VIEW], masks=[Mask(source="door", polygon=whole)]))
    assert gate.open(LIVE_VIEW, frame(noise(), "gate"), []).all()
    assert not gate.open(LIVE_VIEW, frame(noise(), "door"), []).any()
    star = Gate(PrivacyConfig(allow=[LIVE_VIEW], masks=[Mask(polygon=whole)]))
    assert not star.open(LIVE_VIEW, frame(noise(), "anything"), []).any()


def test_a_mask_reaches_the_edges_and_not_around_them():
    area = covered([(0.0, 0.0), (0.2, 0.0), (0.2, 0.2), (0.0, 0.2)], 50, 50)
    assert area[:10, :10].all()
    assert not area[-1].any()
    assert not area[:, -1].any()


def test_a_policy_that_makes_no_sense_is_told():
    with pytest.raises(ConfigError, match='"webhook" is no way out of here; there are live-view'):
        Gate(PrivacyConfig(allow=["webhook"]))
    with pytest.raises(ConfigError, match="2 points for gate; an area has at least 3"):
        Gate(PrivacyConfig(masks=[Mask(source="gate", polygon=[(0.0, 0.0), (1.0, 1.0)])]))
