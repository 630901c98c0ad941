"""The agent's HTTP interface: who may ask, what it says, the inference protocol, pushed pictures, the live view."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny
from browser import Browser
from clips import write_clip
from hypothesis import given
from hypothesis import strategies as st
from live_agent import LiveAgent, get
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from edge_agent.api import kserve
from edge_agent.api.guard import token_of
from edge_agent.config import ApiConfig
from edge_agent.histogram import Histogram
from skerry.errors import ConfigError, UsageError
from skerry.manifest import Tensor

IMAGE = Tensor("image", "float32", [1, 2, 2, 3])


def body(**changes: object) -> bytes:
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 2, 2, 3], "data": list(range(12))}
    return json.dumps({"inputs": [{**entry, **changes}]}).encode()


# --- the protocol, pure -------------------------------------------------------------------------------------------


def test_a_request_in_json_and_one_in_bytes_say_the_same():
    plain = kserve.parse(body(), None, [IMAGE])
    tensor = np.arange(12, dtype="<f4").reshape(1, 2, 2, 3)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "FP32",
                    "shape": [1, 2, 2, 3],
                    "parameters": {"binary_data_size": tensor.nbytes},
                }
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    binary = kserve.parse(head + tensor.tobytes(), str(len(head)), [IMAGE])
    assert np.array_equal(plain.inputs["image"], binary.inputs["image"])
    assert (plain.all_binary, binary.all_binary) == (False, True)


@pytest.mark.parametrize(
    ("raw", "length", "says"),
    [
        (b"{", None, "not an inference request"),
        (b"{}", "99", "but the body has 2 bytes"),
        (body(datatype="FP8"), None, "datatype FP8; known are FP16, FP32"),
        (body(shape=[1, 2, 2]), None, r"its data is not FP32 of \[1, 2, 2\]"),
        (body(name="img"), None, r"expected inputs image float32 \[1, 2, 2, 3\]; got img"),
        (body(datatype="INT64"), None, "got image int64"),
        (body(parameters={"binary_data_size": 48}), None, "binary_data_size 48, but 0 bytes are left"),
        (body() + b"more", str(len(body())), "4 bytes are left over"),
    ],
)
def test_a_wrong_request_is_told_what_is_expected(raw, length, says):
    with pytest.raises(UsageError, match=says):
        kserve.parse(raw, length, [IMAGE])


@given(st.binary(max_size=300), st.one_of(st.none(), st.text(max_size=5)))
def test_no_request_breaks_the_parser(raw, length):
    with contextlib.suppress(UsageError):
        kserve.parse(raw, length, [IMAGE])


def test_a_response_carries_what_was_asked_for():
    outputs = {"a": np.arange(3, dtype=np.float32), "b": np.arange(2, dtype=np.int64)}
    asked = kserve.Asked("7", {}, {"b": True}, all_binary=False)
    raw, length = kserve.respond(asked, "net", "3", outputs)
    head = json.loads(raw[:length])
    assert head["id"] == "7"
    assert [out["name"] for out in head["outputs"]] == ["b"]
    assert np.array_equal(np.frombuffer(raw[length:], "<i8"), [0, 1])
    with pytest.raises(UsageError, match="no output c; it has a, b"):
        kserve.respond(kserve.Asked("", {}, {"c": False}, all_binary=False), "net", "3", outputs)


def test_a_histogram_counts_into_its_buckets():
    histogram = Histogram()
    for seconds in (0.0001, 0.0005, 0.03, 99.0):
        histogram.observe(seconds)
    assert sum(histogram.counts) == 4
    assert (histogram.counts[0], histogram.counts[-1]) == (2, 1)


# --- who may ask --------------------------------------------------------------------------------------------------


def test_an_interface_that_is_open_to_others_needs_a_token(tmp_path):
    assert token_of(ApiConfig()) is None
    with pytest.raises(ConfigError, match=r"api.bind = '0.0.0.0' is open to others"):
        token_of(ApiConfig(bind="0.0.0.0"))
    file = tmp_path / "token"
    config = ApiConfig(bind="0.0.0.0", token_file=str(file))
    with pytest.raises(ConfigError, match="is not there; for example: openssl rand"):
        token_of(config)
    file.write_text("short")
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="5 characters, at least 16"):
        token_of(config)
    file.write_text("a" * 32 + "\n")
    assert token_of(config) == "a" * 32
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        token_of(config)


# --- a real agent -------------------------------------------------------------------------------------------------

MORE = """
[[sources]]
url = "push:"
name = "door"
policy = "every"
deadline_ms = 5000
[privacy]
allow = ["live-view", "event-picture"]
[[privacy.masks]]
source = "camera"
polygon = [[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]]
"""


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("api")
    bundle, release = tiny.Tiny().pack(folder)
    with LiveAgent(folder, write_clip(folder / "clip.mp4", frames=60), more=MORE, more_events="picture = true") as it:
        it.start("--model", str(bundle))
        it.wait_kept(release)
        it.port = json.loads((it.data / "agent.json").read_bytes())["port"]
        yield it


def ask(agent: LiveAgent, method: str, path: str, raw: bytes = b"", **headers: str) -> tuple[int, dict, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=20)
    try:
        connection.request(method, path, raw, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def png(colour: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(tiny.coloured(colour, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.slow
def test_a_pushed_picture_gets_its_verdict_and_an_event(agent):
    for colour, label in enumerate(tiny.COLOURS):
        code, _, raw = ask(agent, "POST", "/v1/sources/door/frames", png(colour))
        verdict = json.loads(raw)
        assert (code, verdict["answers"][0]["label"]) == (200, label)
    code, _, raw = ask(agent, "POST", "/v1/sources/door/frames", b"no picture")
    assert (code, "no image that can be read" in raw.decode()) == (400, True)
    code, _, raw = ask(agent, "POST", "/v1/sources/camera/frames", png(0))
    assert (code, "no source camera takes pictures" in raw.decode()) == (404, True)
    assert get(agent.port, "/status")[1]["sources"]["door"]["processed"] == 3


@pytest.mark.slow
def test_the_live_view_shows_masked_pictures_with_their_answers_and_a_snapshot_is_not_allowed(agent):
    code, headers, raw = ask(agent, "GET", "/v1/live/camera")
    assert (code, headers["content-type"]) == (200, "image/jpeg")
    pixels = np.asarray(Image.open(io.BytesIO(raw)))
    about = json.loads(headers["x-skerry-answers"])
    assert pixels.shape == (64, 96, 3)
    assert pixels[:, :44].max() < 16, "the mask, but for what JPEG makes of its edge"
    assert pixels[:, 56:].max() > 60
    assert about["answers"][0]["label"] in tiny.COLOURS
    assert ask(agent, "GET", "/v1/snapshot/camera")[0] == 403
    assert ask(agent, "GET", "/v1/live/nobody")[0] == 404


@pytest.mark.slow
def test_an_event_s_picture_is_found_by_its_digest(agent):
    deadline = time.monotonic() + 20
    told: list[dict] = []
    while not told:
        assert time.monotonic() < deadline
        told = [line["event"]["picture"] for line in agent.lines() if line["event"].get("picture")]
        time.sleep(0.1)
    code, headers, raw = ask(agent, "GET", f"/v1/pictures/{told[0]['sha256']}")
    assert (code, headers["content-type"], len(raw)) == (200, "image/jpeg", told[0]["bytes"])
    assert hashlib.sha256(raw).hexdigest() == told[0]["sha256"]
    assert ask(agent, "GET", f"/v1/pictures/{'0' * 64}")[0] == 404


@pytest.mark.slow
def test_the_open_inference_protocol_answers_as_the_model_does(agent):
    assert ask(agent, "GET", "/v2/health/live")[0] == ask(agent, "GET", "/v2/health/ready")[0] == 200
    code, _, raw = ask(agent, "GET", "/v2/models/tiny")
    about = json.loads(raw)
    assert (code, about["versions"]) == (200, ["1"])
    (tensor,) = about["inputs"]
    values = np.zeros(tensor["shape"], np.float32)
    request = {
        "inputs": [
            {"name": tensor["name"], "datatype": "FP32", "shape": tensor["shape"], "data": values.reshape(-1).tolist()}
        ]
    }
    code, _, raw = ask(agent, "POST", "/v2/models/tiny/infer", json.dumps(request).encode())
    assert code == 200, raw
    assert json.loads(raw)["outputs"][0]["shape"] == about["outputs"][0]["shape"]
    code, _, raw = ask(agent, "POST", "/v2/models/other/infer", json.dumps(request).encode())
    assert (code, "the model in service is tiny version 1" in raw.decode()) == (400, True)
    assert ask(agent, "POST", "/v2/models/tiny/infer", b"{}")[0] == 400


@pytest.mark.slow
def test_events_come_as_they_happen(agent):
    heard: list[bytes] = []

    def listen() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", agent.port, timeout=20)
        connection.request("GET", "/v1/events")
        answer = connection.getresponse()
        while len(heard) < 2:
            line = answer.readline()
            if line.startswith(b"data: "):
                heard.append(line[6:])
        connection.close()

    listening = threading.Thread(target=listen)
    listening.start()
    time.sleep(0.3)
    ask(agent, "POST", "/v1/sources/door/frames", png(0))
    ask(agent, "POST", "/v1/sources/door/frames", png(1))
    listening.join(20)
    assert {"seen"} == {json.loads(line)["kind"] for line in heard}


@pytest.mark.slow
def test_metrics_are_what_prometheus_reads(agent):
    _, headers, raw = ask(agent, "GET", "/metrics")
    families = {family.name: family for family in text_string_to_metric_families(raw.decode())}
    assert headers["content-type"].startswith("text/plain")
    stages = {sample.labels.get("stage") for sample in families["skerry_agent_stage_seconds"].samples}
    assert stages == {"wait", "preprocess", "infer", "decode", "tell"}
    processed = [s for s in families["skerry_agent_frames"].samples if s.labels["fate"] == "processed"]
    assert all(sample.value > 0 for sample in processed if sample.labels["source"] == "camera")


@pytest.mark.slow
def test_a_request_for_another_host_is_refused(agent):
    code, _, raw = ask(agent, "GET", "/status", Host="evil.example")
    assert (code, "this is not evil.example" in raw.decode()) == (421, True)
    assert ask(agent, "GET", "/status", Host=f"localhost:{agent.port}")[0] == 200


@pytest.mark.slow
def test_with_a_token_only_who_has_it_gets_in(tmp_path):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123\n")
    token.chmod(0o600)
    bundle, release = tiny.Tiny().pack(tmp_path)
    with LiveAgent(
        tmp_path, write_clip(tmp_path / "clip.mp4", frames=30), more=f'[api]\ntoken_file = "{token}"\n'
    ) as it:
        it.start("--model", str(bundle))
        deadline = time.monotonic() + 20
        while not (it.data / "agent.json").exists():
            assert time.monotonic() < deadline, it.output()
            time.sleep(0.05)
        it.port = json.loads((it.data / "agent.json").read_bytes())["port"]
        assert ask(it, "GET", "/status")[0] == 401
        assert ask(it, "GET", "/status", Authorization="Bearer wrong")[0] == 401
        assert ask(it, "GET", "/status", Authorization="Bearer 0123456789abcdef0123")[0] == 200
        code, headers, _ = ask(it, "GET", "/?token=0123456789abcdef0123")
        assert (code, headers["location"]) == (303, "/")
        cookie = headers["set-cookie"].split(";")[0]
        assert "SameSite=strict" in headers["set-cookie"]
        assert ask(it, "GET", "/", Cookie=cookie)[0] == 200
    assert release


TRITON = """
import sys
import numpy as np
import tritonclient.http as http

client = http.InferenceServerClient(sys.argv[1])
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
assert client.is_model_ready("tiny", "1") and "binary_tensor_data" in client.get_server_metadata()["extensions"]
about = client.get_model_metadata("tiny")
(entry,), (out,) = about["inputs"], about["outputs"]
values = np.random.default_rng(0).random(entry["shape"], np.float32)
found = []
for binary_in in (True, False):
    for binary_out in (True, False):
        tensor = http.InferInput(entry["name"], entry["shape"], entry["datatype"])
        tensor.set_data_from_numpy(values, binary_data=binary_in)
        wanted = http.InferRequestedOutput(out["name"], binary_data=binary_out)
        result = client.infer("tiny", [tensor], outputs=[wanted], request_id="seven")
        assert result.get_response()["id"] == "seven"
        found.append(result.as_numpy(out["name"]))
found.append(client.infer("tiny", [tensor]).as_numpy(out["name"]))
assert all(np.allclose(found[0], other, atol=1e-6) for other in found)
waiting = [client.async_infer("tiny", [tensor]) for _ in range(8)]
assert all(np.allclose(found[0], one.get_result().as_numpy(out["name"]), atol=1e-6) for one in waiting)
try:
    client.infer("other", [tensor])
except http.InferenceServerException as exc:
    print(exc)
"""


@pytest.mark.slow
def test_triton_s_own_client_works_as_it_comes(agent):
    done = subprocess.run(
        [sys.executable, "-c", TRITON, f"127.0.0.1:{agent.port}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "the model in service is tiny version 1" in done.stdout


@pytest.mark.slow
def test_the_live_view_in_a_real_browser(agent, tmp_path):
    ask(agent, "POST", "/v1/sources/door/frames", png(1))
    with Browser(tmp_path, f"http://localhost:{agent.port}/") as page:
        page.until("document.querySelectorAll('canvas').length == 2")
        page.until("document.getElementById('state').textContent == 'idle'")
        page.until("document.querySelectorAll('#stages tbody tr').length == 5")
        page.until("document.querySelectorAll('#events li:not(.note)').length > 0")
        left, right = "getImageData(2, 60, 1, 1)", "getImageData(90, 60, 1, 1)"  # within the mask, and outside
        pen = "document.querySelector('canvas').getContext('2d')"
        page.until(f"Math.max(...{pen}.{right}.data.slice(0, 3)) > 60")
        assert page.run(f"Math.max(...{pen}.{left}.data.slice(0, 3))") < 16
        assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
        page.picture(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
