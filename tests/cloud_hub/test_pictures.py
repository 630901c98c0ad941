"""The hub keeps devices' pictures: each device its own, as large as they may be, for operators."""

from __future__ import annotations

import hashlib
import time

import jwt
import pytest
from hub_parts import hub_parts, join

from cloud_hub.pictures import MAX_BESIDE, MAX_PICTURE
from skerry.claim import JWT_AUDIENCE
from skerry.clock import Trust
from skerry.wire import Answer, Picture, Sample, encode


@pytest.fixture
def parts(tmp_path):
    with hub_parts(tmp_path) as made:
        yield made


@pytest.fixture
def device(parts):
    name, key = join(parts)
    now = int(time.time())
    claims = {"sub": name, "aud": JWT_AUDIENCE, "iat": now, "exp": now + 60}
    return name, jwt.encode(claims, key, algorithm="ES256")


def jpeg(number: int, size: int = 1000) -> tuple[bytes, str]:
    raw = b"\xff\xd8\xff" + number.to_bytes(4, "big") + bytes(size - 7)
    return raw, hashlib.sha256(raw).hexdigest()


def put(parts, device, raw, digest, kind="pictures", more=""):
    return parts.ask("PUT", f"/v1/devices/{device[0]}/{kind}/{digest}{more}", content=raw, token=device[1])


def test_a_picture_is_kept_once_and_served_to_operators_alone(parts, device):
    raw, digest = jpeg(1)
    assert put(parts, device, raw, digest).status_code == 204
    assert put(parts, device, raw, digest).status_code == 204, "a repeat is no fault"
    for word in (device[0], "cam"):
        got = parts.ask("GET", f"/v1/devices/{word}/pictures/{digest}")
        assert got.content == raw
        assert got.headers["content-type"] == "image/jpeg"
        assert got.headers["x-content-type-options"] == "nosniff"
    assert parts.ask("GET", f"/v1/devices/{device[0]}/pictures/{digest}", token=device[1]).status_code == 401
    assert parts.ask("GET", f"/v1/devices/{device[0]}/samples/{digest}").status_code == 404
    assert parts.ask("PUT", f"/v1/devices/{device[0]}/pictures/{digest}", content=raw).status_code == 401, "a device's"


def test_no_device_writes_into_another_ones_folder(parts, device):
    other, _ = join(parts, "other")
    raw, digest = jpeg(1)
    assert put(parts, (other, device[1]), raw, digest).status_code == 401
    assert parts.ask("GET", f"/v1/devices/{other}/pictures/{digest}").status_code == 404


@pytest.mark.parametrize(
    ("raw", "digest", "status", "says"),
    [
        (b"\x89PNG" + bytes(100), None, 422, "expected a JPEG"),
        (b"", None, 422, "expected a JPEG"),
        (b"\xff\xd8\xff" + bytes(100), "0" * 64, 422, "expected sha256"),
        (b"\xff\xd8\xff" + bytes(MAX_PICTURE), None, 413, "at most"),
    ],
    ids=["another format", "nothing", "another digest", "too large"],
)
def test_what_is_no_picture_is_refused_and_not_kept(parts, device, raw, digest, status, says):
    name = digest or hashlib.sha256(raw).hexdigest()
    answer = put(parts, device, raw, name)
    assert answer.status_code == status
    assert says in answer.json()["detail"]
    assert parts.ask("GET", f"/v1/devices/{device[0]}/pictures/{name}").status_code == 404


def test_a_device_has_a_quota_and_its_oldest_pictures_go(parts, device):
    sent = [jpeg(number) for number in range(6)]
    for raw, digest in sent:
        assert put(parts, device, raw, digest).status_code == 204
        time.sleep(0.02)  # the file system's clock ticks every few milliseconds
    there = [parts.ask("GET", f"/v1/devices/{device[0]}/pictures/{digest}").status_code for _, digest in sent]
    assert there == [404, 404, 200, 200, 200, 200]


def test_a_samples_answers_stand_beside_it(parts, device):
    raw, digest = jpeg(1)
    picture = Picture(sha256=digest, bytes=len(raw), width=1, height=1)
    about = Sample(
        why="random", picture=picture, source="s", frame=1, release="r", answers=[Answer("cat", 0.5)], utc_ms=0,
        trust=Trust.RTC, mono_ms=0,
    )  # fmt: skip
    assert put(parts, device, encode(about), digest, "samples", "/answers").status_code == 404, "the picture first"
    assert put(parts, device, raw, digest, "samples").status_code == 204
    path = f"/v1/devices/{device[0]}/samples/{digest}/answers"
    assert parts.ask("GET", path).status_code == 404
    assert put(parts, device, b"{}", digest, "samples", "/answers").status_code == 422
    assert put(parts, device, bytes(MAX_BESIDE + 1), digest, "samples", "/answers").status_code == 413
    assert put(parts, device, encode(about), digest, "samples", "/answers").status_code == 204
    assert parts.ask("GET", path).content == encode(about)
