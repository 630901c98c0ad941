"""A device's pictures reach the real hub, one after the other, also when it was away; and the whole agent's do."""

from __future__ import annotations

import hashlib
import json
import random
import ssl

import anyio
import pytest
import tiny
from clips import write_clip
from live_agent import LiveAgent
from live_hub import LiveHub

from edge_agent import identity
from edge_agent.https import request
from edge_agent.pictures import Pictures
from edge_agent.upload import Upload, Way
from skerry.claim import Claim
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.errors import NotFound
from skerry.fleet.documents import Policy, RolloutIn

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LiveHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


def jpeg(number: int) -> tuple[bytes, str]:
    raw = b"\xff\xd8\xff" + bytes([number]) * 20_000
    return raw, hashlib.sha256(raw).hexdigest()


def on_hub(hub, path: str) -> bytes | None:
    """What the hub serves to an operator."""
    profile = json.loads((hub.data / "operator.json").read_bytes())
    context = ssl.create_default_context(cadata=profile["ca"])
    try:
        return request(f"https://localhost:{hub.port}", "GET", path, context, token=profile["token"])
    except NotFound:
        return None


def test_pictures_wait_while_the_hub_is_away_and_a_refused_one_holds_nobody_up(hub, tmp_path):
    me = identity.enrol(Claim.parse(hub.claim()), "cam", tmp_path / "identity", Disk())
    pictures = Pictures(tmp_path / "pictures", Disk(), 1 << 20)

    def upload():
        way = Way("pictures", pictures)
        return way, Upload(me, [way], SystemClock(), random.Random(0).uniform)

    async def run(sender, until):
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(sender.run)
                while not until():  # noqa: ASYNC110 - of another thread's doing
                    await anyio.sleep(0.05)
                tasks.cancel_scope.cancel()

    def put(*numbers):
        for number in numbers:
            pictures.put(*jpeg(number))

    def there(*numbers):
        paths = {n: f"/v1/devices/{me.device}/pictures/{jpeg(n)[1]}" for n in numbers}
        return [n for n, path in paths.items() if on_hub(hub, path) == jpeg(n)[0]]

    put(1, 2)
    pictures.put(b"no JPEG at all", hashlib.sha256(b"no JPEG at all").hexdigest())
    put(3)
    way, sender = upload()
    anyio.run(run, sender, lambda: pictures.waiting == 0)
    assert (way.sent, way.refused) == (3, 1)
    assert there(1, 2, 3) == [1, 2, 3]
    sender.close()
    hub.kill()
    put(4, 5)
    way, sender = upload()
    anyio.run(run, sender, lambda: sender.failing)
    assert pictures.waiting == 2
    hub.start()
    pictures = Pictures(tmp_path / "pictures", Disk(), 1 << 20)  # after a restart
    way, sender = upload()
    anyio.run(run, sender, lambda: pictures.waiting == 0)
    assert way.sent == 2, "no picture is sent again"
    assert there(4, 5) == [4, 5]


def test_the_whole_agents_pictures_and_samples_are_with_the_hub(hub, tmp_path):
    bundle, _ = tiny.Tiny().pack(tmp_path)
    clip = write_clip(tmp_path / "clip.mp4", frames=60)
    more = (
        '[privacy]\nallow = ["event-picture", "sample"]\n[sampling]\nrandom = 0.2\nper_hour = 3\nupload = true\n'
        "[link]\nreport_s = 1.0"
    )
    agent = LiveAgent(tmp_path, clip, more=more, more_events="picture = true")
    with hub.client() as client:
        client.push(bundle, tmp_path, lambda *_: None)
    token = hub.claim(trust=[(tmp_path / "trusted.pub").read_text()])
    with agent.start("--enrol", token, "--name", "whole"):
        agent.wait(lambda s: s["link"] and s["link"]["connected"], 60)
        with hub.client() as client:
            made = client.draft(RolloutIn(release="tiny@1", canary="1", waves=["100%"], policy=Policy(soak_s=1)))
            client.act(made.id, "start")
        status = agent.wait(lambda s: s["pictures"]["samples"]["sent"] >= 3 and s["pictures"]["pictures"]["sent"], 60)
        device = status["link"]["device"]
        assert status["pictures"]["samples"]["kept"] == 3, "its budget"
        agent.wait(lambda s: s["pictures"]["pictures"]["waiting"] == 0)
    seen = [line["event"] for line in agent.lines() if line["event"]["kind"] == "seen"]
    digest = seen[0]["picture"]["sha256"]
    raw = on_hub(hub, f"/v1/devices/{device}/pictures/{digest}")
    assert hashlib.sha256(raw).hexdigest() == digest
    for path in (agent.data / "samples").glob("*.json"):
        sample = json.loads(path.read_bytes())
        at = f"/v1/devices/{device}/samples/{sample['picture']['sha256']}"
        assert hashlib.sha256(on_hub(hub, at)).hexdigest() == sample["picture"]["sha256"]
        assert json.loads(on_hub(hub, f"{at}/answers")) == sample
