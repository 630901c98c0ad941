"""Strangers at the door: refused, logged once, and the real device goes on undisturbed."""

from __future__ import annotations

import asyncio
import ssl

import aiomqtt
import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric import ec
from linked import Linked
from live_hub import BROKERS, LiveHub, each_once, whole

from cloud_hub.broker import EmbeddedBroker, Settings
from cloud_hub.identity import Authority
from edge_agent import identity
from skerry import mqtt
from skerry.claim import Claim
from skerry.clock import SystemClock
from skerry.disk import Disk
from skerry.messages import MAX_MESSAGE, seal_desired
from skerry.wire import Desired

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=BROKERS)
def fleet(request, tmp_path_factory):
    """A hub, and a real device that sends events throughout."""
    folder = tmp_path_factory.mktemp("strangers")
    with LiveHub(folder, request.param) as hub, Linked(folder / "victim", hub.claim(), link={"report_s": 2}) as victim:
        victim.wait("connected", lambda s: s["connected"])
        yield hub, victim, identity.load(folder / "victim" / "identity")


@pytest.fixture
def undisturbed(fleet):
    """The real device must not notice: same connection, every event once."""
    hub, victim, _ = fleet
    before = victim.status()
    yield
    said = (victim.folder / "said.txt").read_text()
    victim.wait("events go on", lambda s: s["emitted"] > before["emitted"] + 5 and s["connected"])
    assert "out of reach" not in said
    for numbers in each_once([e for e in hub.events() if e.device == before["device"]]).values():
        assert whole(numbers)


def stranger(fleet, tmp_path):
    """Somebody else of the fleet, with a certificate of its own."""
    hub, _, _ = fleet
    return identity.enrol(Claim.parse(hub.claim()), "stranger", tmp_path / "stranger", Disk())


def attempt(who, *, client_id=None, will=None, do=None, context=None):
    """Connects as ``who``; what came of it: None if nobody objected."""
    broker = who.hub.enrolment.broker
    protocol = mqtt._VERSIONS[broker.protocol]

    async def run():
        client = aiomqtt.Client(
            broker.host, broker.port, identifier=client_id or who.device, protocol=protocol, will=will, timeout=4,
            tls_context=context or mqtt.tls(who.ca, who.certificate, who.key_file),
        )  # fmt: skip
        try:
            async with client:
                if do is not None:
                    await do(client)
                await client.subscribe(f"skerry/1/main/{who.device}/down/#")
        except (aiomqtt.MqttError, OSError) as exc:
            return exc
        return None

    return asyncio.run(run())


def log_of(hub):
    mosquitto = hub.folder / "mosquitto.txt"
    return hub.output() + (mosquitto.read_text() if mosquitto.exists() else "")


@pytest.mark.usefixtures("undisturbed")
def test_without_a_certificate_nobody_gets_in(fleet, tmp_path):
    me = stranger(fleet, tmp_path)
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(me.ca)
    assert attempt(me, context=bare) is not None
    other = Authority(tmp_path / "other-fleet", Disk(), SystemClock())
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "forged.pem").write_text(other.certify_device(me.device, key.public_key()))
    path = tmp_path / "forged.key"
    path.write_bytes(key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption()))
    assert attempt(me, context=mqtt.tls(me.ca, tmp_path / "forged.pem", path)) is not None


@pytest.mark.usefixtures("undisturbed")
def test_another_devices_client_id_does_not_take_its_place(fleet, tmp_path):
    hub, _, victim = fleet
    me = stranger(fleet, tmp_path)
    outcomes = [attempt(me, client_id=victim.device) for _ in range(6)]
    if hub.mosquitto is None:  # Mosquitto gives it the id of its own certificate instead, which is as good
        assert all(outcome is not None for outcome in outcomes)
        assert 1 <= hub.output().count(f"refused {me.device}: client id") <= 3


@pytest.mark.usefixtures("undisturbed")
def test_a_will_under_anothers_topic_is_not_published(fleet, tmp_path):
    hub, _, victim = fleet
    me = stranger(fleet, tmp_path)
    will = aiomqtt.Will(f"skerry/1/main/{victim.device}/up/death", b"{}")

    async def vanish(client):
        client._client.socket().close()  # no goodbye: the will is due
        await asyncio.sleep(1)

    attempt(me, will=will, do=vanish)
    assert f"device {victim.device}: a message at death" not in hub.output()
    with hub.client() as client:
        assert client.device(victim.device).online


@pytest.mark.usefixtures("undisturbed")
def test_a_message_in_anothers_name_is_not_passed_on(fleet, tmp_path):
    hub, _, victim = fleet
    me = stranger(fleet, tmp_path)

    async def forge(client):
        for kind in ("up/reported", "up/events", "down/desired", "down/ack"):
            await client.publish(f"skerry/1/main/{victim.device}/{kind}", b"forged", qos=1)

    attempt(me, do=forge)
    assert f"device {victim.device}" not in hub.output()
    assert "not believed" not in (fleet[1].folder / "said.txt").read_text()


@pytest.mark.usefixtures("undisturbed")
def test_a_packet_that_is_too_large_ends_the_connection(fleet, tmp_path):
    me = stranger(fleet, tmp_path)

    async def flood(client):
        await client.publish(f"skerry/1/main/{me.device}/up/events", b"x" * (MAX_MESSAGE + 4096), qos=1)

    assert attempt(me, do=flood) is not None


@pytest.mark.usefixtures("undisturbed")
def test_what_is_no_message_is_logged_once(fleet, tmp_path):
    hub, _, _ = fleet
    me = stranger(fleet, tmp_path)

    async def babble(client):
        for _ in range(20):
            await client.publish(f"skerry/1/main/{me.device}/up/events", b"babble", qos=1)
        await asyncio.sleep(1)

    attempt(me, do=babble)
    hub.wait("the hub says so", lambda: f"device {me.device}: " in hub.output(), 20)
    assert hub.output().count(f"device {me.device}: ") == 1


def test_forged_and_replayed_wishes_are_not_believed(fleet):
    """The attacker owns the broker: here, the hub's own certificate for it."""
    hub, victim, me = fleet
    hub_cert, hub_key = hub.data / "keys" / "client.pem", hub.data / "keys" / "client.key"
    context = mqtt.tls(me.ca, hub_cert, hub_key)
    authority = Authority(hub.data / "keys", Disk(), SystemClock())
    broker = me.hub.enrolment.broker
    topic = f"skerry/1/main/{me.device}/down/desired"
    stolen = ec.generate_private_key(ec.SECP256R1())
    good = seal_desired(Desired(version=10, apps={}, device=me.device), authority.desired)
    hub.kill()  # the attacker takes its place at the broker
    keys = hub.data / "keys"
    settings = Settings(
        host="127.0.0.1", port=broker.port, tenant=me.tenant, ca=str(keys / "ca.pem"),
        certificate=str(keys / "server.pem"), key=str(keys / "server.key"),
    )  # fmt: skip
    own = EmbeddedBroker(settings)  # the hub's own broker ended with it
    if hub.mosquitto is None:
        own.start()
    forged = [
        seal_desired(Desired(version=99, apps={}, device=me.device), stolen),
        seal_desired(Desired(version=99, apps={}, device="b" * 26), authority.desired),
        good.replace(b'"sig":"M', b'"sig":"N'),
        b"{}",
        good[:-20],
    ]
    replayed = seal_desired(Desired(version=9, apps={}, device=me.device), authority.desired)

    async def attack():
        async with aiomqtt.Client(
            broker.host, broker.port, identifier="hub", tls_context=context, protocol=mqtt._VERSIONS[broker.protocol]
        ) as client:
            for _ in range(120):  # until it has come back to this broker
                if victim.status().get("version") == 10:
                    break
                await client.publish(topic, good)
                await asyncio.sleep(0.5)
            for payload in [*forged, replayed] * 3:
                await client.publish(topic, payload)
            await asyncio.sleep(1)

    asyncio.run(attack())
    status = victim.wait("the forged ones were seen", lambda s: s["refused"] >= 18)
    assert status["version"] == 10
    said = (victim.folder / "said.txt").read_text()
    assert 1 <= said.count("not believed") <= 3
    victim.kill()
    victim.start()
    assert victim.wait("it runs again", bool)["version"] == 10, "what was believed lies on the disk"
    own.stop()
    hub.start()
    victim.wait("connected", lambda s: s["connected"])


def test_the_log_holds_no_surprise(fleet):
    assert "Traceback" not in fleet[0].output()
