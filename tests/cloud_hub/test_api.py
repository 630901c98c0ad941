"""The API: what operators and devices are answered, and what they are refused."""

from __future__ import annotations

import hashlib
import time

import jwt
import pytest
import tiny
from hub_parts import hub_parts, join

from skerry import archive
from skerry.claim import JWT_AUDIENCE
from skerry.messages import BIRTH, REPORTED, AppReport, Birth, Health, Reported
from skerry.wire import ProofReport


@pytest.fixture
def parts(tmp_path):
    with hub_parts(tmp_path) as made:
        yield made


def push(parts, folder, version=1, **options):
    """Sends a bundle as the client does; returns the release's id."""
    bundle, release = tiny.Tiny(version=version, **options).pack(folder)
    with bundle.open("rb") as file:
        blobs = {member.name: b"".join(member.chunks()) for member in archive.read(file)}
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in blobs.items()}
    for name, raw in blobs.items():
        assert parts.ask("PUT", f"/v1/blobs/sha256/{digests[name]}", content=raw).status_code == 204
    body = {"manifest": digests["bundle.json"], "signature": digests["bundle.sig"]}
    return parts.ask("POST", "/v1/releases", body), release


def born(parts, device):
    parts.say(BIRTH, device, Birth(agent="1", run="r", streams=[], seen_version=0, arch="x", cpu=[], backends=[]))


def report(parts, device, release, *, kept_s=700.0, rejected=None, good=None):
    proof = ProofReport(
        release=release, variant="v", backend="b", provider="p", version="1", threads=1, input_sqnr_db=60.0,
        sqnr_db=40.0, same=6, decided=6, time_ms=4.5, time_ratio=None, peak_mib=90.0,
    )  # fmt: skip
    health = Health(release=release, kept_s=kept_s, captured=9, processed=9, superseded=0, failed=0)
    app = AppReport(
        state="idle",
        attempt=0,
        target=None,
        active=release,
        good=good or release,
        variant="v",
        proof=[proof],
        health=health,
    )
    parts.clock.ms += 1000
    said = Reported(seen_version=1, apps={"main": app}, rejected=rejected or {})
    parts.say(REPORTED, device, said, mono_ms=parts.clock.ms)


def test_every_route_but_the_first_ones_wants_a_token(parts):
    paths = parts.http.get("/openapi.json").json()["paths"]
    open_ones = {"/v1/health", "/v1/ca", "/v1/enrol"}
    asked = 0
    for path, methods in paths.items():
        for method in methods:
            if path not in open_ones:
                filled = path.format(number=1, action="start", sha256="0" * 64, word="x", name="x")
                answer = parts.http.request(method, filled, content=b"{}")
                assert answer.status_code == 401, (method, path)
                assert answer.headers["content-type"] == "application/problem+json"
                assert parts.ask(method, filled, token="skerry_" + "0" * 32).status_code == 401
                asked += 1
    assert asked > 15
    assert parts.http.get("/v1/health").json()["broker"] is True


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/v1/nothing", None, 404, "Not Found"),
        ("GET", "/v1/devices/nobody", None, 404, "no device"),
        ("GET", "/v1/rollouts/99", None, 404, "no rollout 99"),
        ("GET", "/v1/rollouts/x", None, 422, "integer"),
        ("GET", "/v1/rollouts/99999999999999999999", None, 422, "less than"),
        ("GET", "/v1/releases/net@x", None, 404, "no release"),
        ("GET", "/v1/blobs/sha256/zz", None, 422, "pattern"),
        ("GET", f"/v1/blobs/sha256/{'0' * 64}", None, 404, "no blob"),
        ("POST", "/v1/rollouts", {"release": "net@1"}, 404, "bundle push"),
        ("POST", "/v1/rollouts", {"relase": "net@1"}, 422, "relase"),
        ("POST", "/v1/claims", {"group": "a b"}, 422, "group"),
        ("POST", "/v1/claims", {"uses": 0}, 422, "uses"),
        ("POST", "/v1/releases", {"manifest": "0" * 64, "signature": "0" * 64}, 404, "no blob"),
        ("POST", "/v1/rollouts/1/explode", None, 422, "take-back"),
        ("DELETE", "/v1/operators/first", None, 409, "another one"),
        ("DELETE", "/v1/operators/nobody", None, 404, "no operator"),
        ("POST", "/v1/operators", {"name": "first"}, 409, "already"),
        ("POST", "/v1/claims", {"group": "x" * 300_000}, 413, "at most"),
    ],
)  # fmt: skip
def test_a_refusal_is_a_problem_that_says_what_to_do(parts, method, path, body, status, says):
    answer = parts.ask(method, path, body)
    assert answer.status_code == status
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status
    assert says in problem["detail"]


def test_a_blob_is_what_its_name_says(parts):
    raw = b"hello" * 1000
    name = hashlib.sha256(raw).hexdigest()
    assert parts.ask("PUT", f"/v1/blobs/sha256/{name}", content=raw[:-1]).status_code == 422
    assert parts.ask("GET", f"/v1/blobs/sha256/{name}").status_code == 404
    assert parts.ask("PUT", f"/v1/blobs/sha256/{name}", content=raw).status_code == 204
    assert parts.ask("PUT", f"/v1/blobs/sha256/{name}", content=raw).status_code == 204
    part = parts.http.get(
        f"/v1/blobs/sha256/{name}", headers={"authorization": f"Bearer {parts.token}", "range": "bytes=4990-"}
    )
    assert (part.status_code, part.content) == (206, b"hello" * 2)


def test_a_name_and_version_is_one_release_for_ever(parts, tmp_path):
    first, release = push(parts, tmp_path)
    assert first.json()["id"] == release
    again, _ = push(parts, tmp_path)
    assert again.status_code == 200
    other, _ = push(parts, tmp_path, frames=5)
    assert other.status_code == 409
    assert "another version" in other.json()["detail"]
    assert [r["name"] for r in parts.ask("GET", "/v1/releases").json()] == ["tiny"]


def test_a_release_is_not_known_before_all_of_it_is_there(parts, tmp_path):
    bundle, _ = tiny.Tiny().pack(tmp_path)
    with bundle.open("rb") as file:
        blobs = {member.name: b"".join(member.chunks()) for member in archive.read(file)}
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in blobs.items()}
    for name in ("bundle.json", "bundle.sig"):
        parts.ask("PUT", f"/v1/blobs/sha256/{digests[name]}", content=blobs[name])
    missing = parts.ask("POST", "/v1/releases/missing", {"signature": digests["bundle.sig"]}).json()["missing"]
    assert set(missing) == {d for n, d in digests.items() if n not in ("bundle.json", "bundle.sig")}
    body = {"manifest": digests["bundle.json"], "signature": digests["bundle.sig"]}
    answer = parts.ask("POST", "/v1/releases", body)
    assert answer.status_code == 422
    assert "are not here" in answer.json()["detail"]


def test_a_device_reads_releases_and_nothing_else(parts, tmp_path):
    _, release = push(parts, tmp_path)
    device, key = join(parts)
    parts.clock.ms = int(time.time() * 1000)
    now = int(time.time())
    token = jwt.encode({"sub": device, "aud": JWT_AUDIENCE, "iat": now, "exp": now + 60}, key, algorithm="ES256")
    assert parts.ask("GET", f"/v1/releases/{release}", token=token).json()["version"] == 1
    assert parts.ask("GET", f"/v1/blobs/sha256/{release}", token=token).status_code == 200
    for method, path in (("GET", "/v1/devices"), ("PUT", f"/v1/blobs/sha256/{release}"), ("POST", "/v1/rollouts")):
        assert parts.ask(method, path, token=token).status_code == 401


def test_a_rollout_from_draft_to_done(parts, tmp_path):
    _, release = push(parts, tmp_path)
    devices = [join(parts, f"cam{n}")[0] for n in range(3)]
    for device in devices:
        born(parts, device)
    made = parts.ask("POST", "/v1/rollouts", {"release": "tiny@1", "canary": "1", "waves": ["50%", "100%"]}).json()
    assert made["state"] == "draft"
    assert [len(wave) for wave in made["members"]] == [1, 1, 1]
    number = made["id"]
    assert parts.services.devices.get(devices[0]).desired_version == 0, "a draft tells nobody anything"
    started = parts.ask("POST", f"/v1/rollouts/{number}/start").json()
    assert started["log"][0]["why"] == "by first"
    for wave in made["members"]:
        parts.services.rollouts.tick()
        for member in wave:
            assert parts.services.devices.get(member["device"]).desired_version == 1
            report(parts, member["device"], release)
    parts.services.rollouts.tick()
    done = parts.ask("GET", f"/v1/rollouts/{number}").json()
    assert done["state"] == "done"
    assert [step["event"] for step in done["log"]] == ["Started", "WavePassed", "WavePassed", "Finished"]
    assert done["members"][0][0]["time_ms"] == 4.5
    assert parts.ask("GET", "/v1/rollouts").json()[0]["release"] == "tiny@1"
    assert {d["active"] for d in parts.ask("GET", "/v1/devices").json()} == {"tiny@1"}


def test_a_person_may_pause_resume_abort_and_take_back(parts, tmp_path):
    push(parts, tmp_path)
    push(parts, tmp_path, version=2)
    device, _ = join(parts)
    born(parts, device)
    number = parts.ask("POST", "/v1/rollouts", {"release": "tiny@1"}).json()["id"]

    def act(action, which=number):
        return parts.ask("POST", f"/v1/rollouts/{which}/{action}")

    assert act("pause").status_code == 409
    assert act("start").json()["state"] == "running"
    assert act("start").status_code == 409
    assert act("pause").json()["state"] == "asking"
    assert act("resume").json()["state"] == "running"
    other = parts.ask("POST", "/v1/rollouts", {"release": "tiny@2"}).json()["id"]
    assert "are in rollout 1" in act("start", other).json()["detail"]
    assert act("take-back").json()["state"] == "taking back"
    parts.services.rollouts.tick()
    assert parts.ask("GET", f"/v1/rollouts/{number}").json()["state"] == "taken back"
    assert act("start", other).json()["state"] == "running"
    assert act("abort", other).json()["state"] == "aborted"


def test_an_absent_device_neither_blocks_nor_passes(parts, tmp_path):
    _, release = push(parts, tmp_path)
    here, away = join(parts, "here")[0], join(parts, "away")[0]
    born(parts, here)
    policy = {"clock_s": 60, "min_share": 0.5}
    body = {"release": "tiny@1", "canary": "0", "waves": ["100%"], "policy": policy}
    number = parts.ask("POST", "/v1/rollouts", body).json()["id"]
    parts.ask("POST", f"/v1/rollouts/{number}/start")
    report(parts, here, release)
    parts.services.rollouts.tick()
    seen = parts.ask("GET", f"/v1/rollouts/{number}").json()
    assert (seen["state"], seen["verdict"]["says"]) == ("running", "wait")
    parts.clock.ms += 60_000
    report(parts, here, release)
    parts.services.rollouts.tick()
    seen = parts.ask("GET", f"/v1/rollouts/{number}").json()
    assert seen["state"] == "done"
    assert "1 offline" in seen["log"][-1]["why"]
    assert {d["device"]: d["standing"] for d in seen["members"][0]}[away] == "offline"


def test_a_second_operator_has_a_token_of_his_own(parts):
    made = parts.ask("POST", "/v1/operators", {"name": "second"}).json()
    assert parts.ask("GET", "/v1/devices", token=made["token"]).status_code == 200
    assert [o["token"] for o in parts.ask("GET", "/v1/operators").json()] == [None, None]
    assert parts.ask("DELETE", "/v1/operators/second").status_code == 204
    assert parts.ask("GET", "/v1/devices", token=made["token"]).status_code == 401
