"""Devices join once, are known by their key, and hold no wish that is older than what they have seen."""

from __future__ import annotations

import jwt
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hub_parts import hub_parts, join, request_for

from cloud_hub.devices import desired_of, wish
from cloud_hub.identity import TENANT
from skerry.claim import JWT_AUDIENCE, Claim
from skerry.errors import Conflict, FormatError, NotAllowed, NotFound, UsageError
from skerry.messages import BIRTH, EVENTS, REPORTED, Ack, Batch, Birth, Reported, desired_path, open_desired, unpack
from skerry.wire import Wish

RELEASE = "f" * 64


@pytest.fixture
def parts(tmp_path):
    with hub_parts(tmp_path) as made:
        yield made


def birth(seen_version=0, streams=("s1",)):
    return Birth(agent="1", run="r", streams=list(streams), seen_version=seen_version, arch="x", cpu=[], backends=[])


def give(parts, device, release=RELEASE):
    parts.services.store.write(lambda c: wish(c, device, "main", Wish(release=release) if release else None))


def token(parts, device, key, *, seconds=60, late=0, **claims):
    now = parts.clock.ms // 1000 - late
    body = {"sub": device, "aud": JWT_AUDIENCE, "iat": now, "exp": now + seconds, **claims}
    return jwt.encode({k: v for k, v in body.items() if v is not None}, key, algorithm="ES256")


def test_a_device_that_asks_again_with_its_key_is_the_same_one(parts):
    key, secret = ec.generate_private_key(ec.SECP256R1()), parts.services.devices.create_claim("g", 1, 1)
    first = parts.services.devices.enrol(secret, request_for(key), "cam")
    again = parts.services.devices.enrol(secret, request_for(key), "cam")
    assert first == again
    assert len(first.device) == 26
    assert len(parts.services.devices.all("g")) == 1
    certificate = x509.load_pem_x509_certificate(first.certificate.encode())
    assert certificate.subject.rfc4514_string() == f"CN={first.device}"
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(first.ca.encode()))


def test_a_claim_is_used_up_runs_out_and_is_not_guessed(parts):
    devices = parts.services.devices
    with pytest.raises(NotAllowed, match="not known"):
        devices.enrol("0" * 32, request_for(ec.generate_private_key(ec.SECP256R1())), "x")
    secret = devices.create_claim("g", 1, 1)
    devices.enrol(secret, request_for(ec.generate_private_key(ec.SECP256R1())), "x")
    with pytest.raises(NotAllowed, match="used up"):
        devices.enrol(secret, request_for(ec.generate_private_key(ec.SECP256R1())), "y")
    old = devices.create_claim("g", 5, 1)
    parts.clock.ms += 3_600_001
    with pytest.raises(NotAllowed, match="out of time"):
        devices.enrol(old, request_for(ec.generate_private_key(ec.SECP256R1())), "z")


def test_a_request_must_be_for_a_p256_key(parts):
    secret = parts.services.devices.create_claim("g", 5, 1)
    for bad in ("", "nonsense", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        with pytest.raises(FormatError):
            parts.services.devices.enrol(secret, bad, "x")
    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())):
        with pytest.raises(FormatError, match="P-256"):
            parts.services.devices.enrol(secret, request_for(key), "x")
    assert parts.services.devices.all() == []


def test_a_device_is_known_by_its_key_for_a_minute(parts):
    device, key = join(parts)
    authenticate = parts.services.devices.authenticate
    now = __import__("time").time()
    parts.clock.ms = int(now * 1000)
    assert authenticate(token(parts, device, key)) == device
    other, other_key = join(parts, "other")
    for bad in (
        token(parts, device, other_key),
        token(parts, "a" * 26, key),
        token(parts, device, key, late=3600),
        token(parts, device, key, seconds=3600),
        token(parts, device, key, aud="somebody"),
        token(parts, device, key, exp=None),
        "a.b.c",
        jwt.encode({"sub": device, "aud": JWT_AUDIENCE}, "x" * 32, algorithm="HS256"),
    ):
        with pytest.raises(NotAllowed):
            authenticate(bad)
    parts.services.devices.revoke(device)
    with pytest.raises(NotAllowed):
        authenticate(token(parts, device, key))
    assert authenticate(token(parts, other, other_key)) == other


def test_a_birth_is_answered_with_the_wish_and_what_the_hub_has(parts):
    device, _ = join(parts)
    give(parts, device)
    parts.say(EVENTS, device, Batch(stream="s1", first_seq=1, lost=0, events=[msgspec.Raw(b"{}")] * 3))
    answers = parts.say(BIRTH, device, birth(streams=["s0", "s1"]))
    wishes = [a for a in answers if a.topic == desired_path(TENANT, device)]
    desired = open_desired(wishes[0].payload, parts.services.authority.desired.public_key(), device)
    assert desired.apps == {"main": Wish(release=RELEASE)}
    acks = {
        ack.stream: ack.last_seq for a in answers if "/ack" in a.topic for ack in [unpack("ack", Ack, a.payload)[1]]
    }
    assert acks == {"s0": 0, "s1": 3}


def test_a_hub_whose_disk_was_restored_speaks_above_what_devices_have_seen(parts):
    device, _ = join(parts)
    give(parts, device)
    parts.say(BIRTH, device, birth(seen_version=41))
    assert desired_of(parts.services.devices.get(device)).version == 42
    give(parts, device, "e" * 64)
    assert desired_of(parts.services.devices.get(device)).version == 43
    give(parts, device, "e" * 64)
    assert desired_of(parts.services.devices.get(device)).version == 43, "wishing the same again is no new wish"


def test_a_clearing_is_said_until_it_is_seen(parts):
    device, _ = join(parts)
    give(parts, device)
    parts.services.devices.clear(device, RELEASE)
    assert desired_of(parts.services.devices.get(device)).cleared == [RELEASE]
    give(parts, device, "e" * 64)
    assert desired_of(parts.services.devices.get(device)).cleared == [RELEASE], "not seen yet: said again"
    parts.say(BIRTH, device, birth(seen_version=3))
    give(parts, device, "d" * 64)
    assert desired_of(parts.services.devices.get(device)).cleared == []


def test_a_report_that_was_overtaken_is_dropped(parts):
    device, _ = join(parts)
    parts.say(BIRTH, device, birth())
    parts.say(REPORTED, device, Reported(seen_version=2, apps={}, rejected={}), mono_ms=200)
    parts.say(REPORTED, device, Reported(seen_version=1, apps={}, rejected={}), mono_ms=100)
    assert parts.services.devices.get(device).seen_version == 2


def test_who_was_revoked_is_not_heard(parts, caplog):
    device, _ = join(parts)
    parts.services.devices.revoke(device)
    for _ in range(3):
        assert parts.say(BIRTH, device, birth()) == []
    assert caplog.text.count("was revoked") == 1
    assert parts.services.devices.get(device).birth is None


def test_nobody_writes_into_anothers_stream(parts, caplog):
    one, _ = join(parts)
    two, _ = join(parts, "two")
    batch = Batch(stream="s", first_seq=1, lost=0, events=[msgspec.Raw(b'{"n":1}')])
    assert len(parts.say(EVENTS, one, batch)) >= 1
    assert [a for a in parts.say(EVENTS, two, batch) if "/ack" in a.topic] == []
    assert "another device's" in caplog.text


def test_what_is_no_message_is_dropped_and_said_once(parts, caplog):
    device, _ = join(parts)
    topic = EVENTS.path(TENANT, device)
    for raw in (b"", b"{", b"\xff" * 10, b'{"v":9}', b"x" * 100_000):
        assert parts.inbound.take([(topic, raw)]) == []
    assert caplog.text.count("it is not heard until that is mended") == 1


def test_devices_are_found_by_name_id_and_the_beginning_of_it(parts):
    one, _ = join(parts, "gate")
    join(parts, "yard")
    join(parts, "yard")
    assert parts.services.devices.find("gate").id == parts.services.devices.find(one[:8]).id == one
    with pytest.raises(Conflict, match="2 devices"):
        parts.services.devices.find("yard")
    with pytest.raises(NotFound):
        parts.services.devices.find("roof")


def test_a_claim_token_is_one_word_and_says_when_it_is_torn():
    claim = Claim(url="https://h:1", ca_sha256="0" * 64, secret="s", trust=["PEM"])
    assert Claim.parse(str(claim)) == claim
    assert len(str(claim).split()) == 1
    for bad in ("", "hello", str(claim)[:-4], str(claim) + "!"):
        with pytest.raises(UsageError, match="claim token"):
            Claim.parse(bad)
