"""Signatures: what OpenSSF Model Signing's own tool makes and reads, and nothing looser."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import stat
from pathlib import Path

import pytest
import tiny
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry import bundle, signing
from skerry.disk import Disk
from skerry.errors import BadSignature, ExtraFile, FormatError, KeyNotTrusted, UsageError

KEYS = {
    "P-256": ec.derive_private_key(0xA1, ec.SECP256R1()),
    "P-384": ec.derive_private_key(0xA2, ec.SECP384R1()),
    "P-521": ec.derive_private_key(0xA3, ec.SECP521R1()),
}
FILES = {"bundle.json": "a" * 64, "proof/frames": "b" * 64, "variants/fp32/model": "0" * 64}
NESTED = b"[" * 100_000 + b"]" * 100_000

# A curve of 112 bits, which cryptography knows no name for.
SHORT_CURVE = b"""-----BEGIN PUBLIC KEY-----
MDIwEAYHKoZIzj0CAQYFK4EEAAYDHgAEEO4xkYPDfz9R4TWUms+Cf9o3CzE8t33S
SwS1ag==
-----END PUBLIC KEY-----
"""

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
paths = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)

every_curve = pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)


@pytest.fixture
def stock():
    """The package that OpenSSF publishes; a broken installation of it fails, only its absence skips."""
    if importlib.util.find_spec("model_signing") is None:
        pytest.skip("model_signing is not installed")
    importlib.import_module("model_signing.signing")
    return importlib.import_module("model_signing")


def private_pem(folder, key):
    path = folder / "signer.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def public_pem(folder, key):
    path = folder / "signer.pub"
    path.write_bytes(signing.public_pem(key.public_key()))
    return path


def stock_signs(stock, root, key):
    """Signs the folder ``root`` with the stock tool, as its own documentation does it."""
    ignoring = stock.hashing.Config().set_ignored_paths(paths=[root / "bundle.sig"], ignore_git_paths=True)
    signer = stock.signing.Config().use_elliptic_key_signer(private_key=private_pem(root.parent, key))
    signer.set_hashing_config(ignoring).sign(root, root / "bundle.sig")


def stock_verifies(stock, root, key):
    verifier = stock.verifying.Config().use_elliptic_key_verifier(public_key=public_pem(root.parent, key))
    verifier.verify(root, root / "bundle.sig")


def release(folder, key=tiny.KEY, **bent):
    root = folder / "tiny"
    tiny.Tiny(key=key, frames=2, **bent).write(root)
    return root


def document(key=tiny.KEY, files=None):
    return json.loads(signing.sign("tiny", FILES if files is None else files, key))


def statement(key=tiny.KEY):
    return json.loads(base64.b64decode(document(key)["dsseEnvelope"]["payload"]))


def signed(payload, payload_type=b"application/vnd.in-toto+json"):
    """A document whose form is right and whose key signed ``payload`` (DSSE, protocol.md), whatever that is."""
    made = document()
    message = b"DSSEv1 %d %s %d %s" % (len(payload_type), payload_type, len(payload), payload)
    sig = tiny.KEY.sign(message, ec.ECDSA(hashes.SHA256()))
    made["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    made["dsseEnvelope"]["signatures"] = [{"sig": base64.b64encode(sig).decode()}]
    return encoded(made)


def encoded(value):
    return json.dumps(value).encode()


# --- the stock tool ------------------------------------------------------------------------------------------------


@every_curve
def test_the_stock_tool_verifies_what_we_sign(stock, tmp_path, key):
    root = release(tmp_path, key)

    stock_verifies(stock, root, key)


@every_curve
def test_we_verify_what_the_stock_tool_signs(stock, tmp_path, key):
    root = release(tmp_path, key)
    stock_signs(stock, root, key)

    opened = bundle.open_directory(root, [key.public_key()])

    assert opened.signer == signing.fingerprint(key.public_key())
    assert set(opened.signed) == {f.path for f in opened.manifest.files} | {"bundle.json", "evidence/compile.json"}


def test_we_verify_what_the_stock_tool_signs_in_its_own_order_of_paths(stock, tmp_path):
    """It sorts by path component, "int8/…" before "int8-fast/…"; the specification sorts by code point."""
    root = release(tmp_path, variants={"int8": tiny.model(), "int8-fast": tiny.model()})
    stock_signs(stock, root, tiny.KEY)

    assert len(bundle.open_directory(root, tiny.trusted()).manifest.variants) == 2


def test_the_stock_tool_refuses_what_we_refuse(stock, tmp_path):
    root = release(tmp_path)
    (root / "proof" / "answers.json").write_bytes(b"[]")

    with pytest.raises(ValueError, match=r"Hash mismatch for 'proof/answers\.json'"):
        stock_verifies(stock, root, tiny.KEY)


def test_a_file_that_the_stock_tool_overlooks_is_refused_here(stock, tmp_path):
    root = release(tmp_path)
    (root / ".gitignore").write_bytes(b"*")

    stock_verifies(stock, root, tiny.KEY)
    with pytest.raises(ExtraFile, match=r"\.gitignore"):
        bundle.open_directory(root, tiny.trusted())


# --- the published schemas and vectors -----------------------------------------------------------------------------


def validator(data, name):
    jsonschema = pytest.importorskip("jsonschema")
    referencing = pytest.importorskip("referencing")
    folder = data / "model-signing-v1.0" / "schemas" / "v1.0"
    schemas = {path.name.split(".")[0]: json.loads(path.read_bytes()) for path in folder.glob("*.schema.json")}
    assert set(schemas) == {"bundle", "envelope", "statement", "predicate"}
    registry = referencing.Registry().with_resources(
        (schema["$id"], referencing.Resource.from_contents(schema)) for schema in schemas.values()
    )
    return jsonschema.Draft202012Validator(schemas[name], registry=registry)


def vectors(data, kind):
    found = sorted((data / "model-signing-v1.0" / "test-vectors" / "v1.0" / kind).glob("*.bundle.json"))
    assert found, f"there are no {kind} vectors"
    return {path.name.split(".")[0]: path.read_bytes() for path in found}


@every_curve
def test_what_we_sign_fits_all_four_published_schemas(data, key):
    made, said = document(key), statement(key)

    validator(data, "bundle").validate(made)
    validator(data, "envelope").validate(made["dsseEnvelope"])
    validator(data, "statement").validate(said)
    validator(data, "predicate").validate(said["predicate"])


def test_the_schemas_are_not_satisfied_by_just_anything(data):
    """Shows that the four are wired together: a fault in the envelope is seen from the bundle, and so on down."""
    made, said = document(), statement()
    made["dsseEnvelope"]["signatures"] = []
    said["predicate"]["serialization"]["method"] = "guess"

    assert not validator(data, "bundle").is_valid(made)
    assert not validator(data, "statement").is_valid(said)


def test_the_form_of_every_published_valid_vector_is_accepted(data):
    methods = {name: signing.Signature.parse(raw).method for name, raw in vectors(data, "valid").items()}

    assert methods == {"key": "key", "certificate": "certificate", "sigstore": "sigstore"}


@pytest.mark.parametrize("kind", ["invalid", "invalid-payload"])
def test_every_published_invalid_vector_is_refused(data, kind):
    for raw in vectors(data, kind).values():
        with pytest.raises(FormatError):
            signing.Signature.parse(raw)


@pytest.mark.parametrize("name", ["certificate", "sigstore"])
def test_no_method_but_the_key_is_trusted(data, name):
    with pytest.raises(KeyNotTrusted, match=f"signed by the method '{name}'"):
        signing.verify(vectors(data, "valid")[name], tiny.trusted())


def test_a_published_vector_by_an_unknown_key_is_not_trusted(data):
    with pytest.raises(KeyNotTrusted, match="signed by key e8450dec4eb99dae"):
        signing.verify(vectors(data, "valid")["key"], tiny.trusted())


# --- laws ----------------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.dictionaries(paths, digests, min_size=1, max_size=8))
def test_what_was_signed_is_what_is_verified(files):
    assert signing.verify(signing.sign("tiny", files, tiny.KEY), tiny.trusted()).files == files


@every_curve
def test_signing_twice_gives_the_same_bytes(key):
    again = dict(reversed(FILES.items()))

    assert signing.sign("tiny", FILES, key) == signing.sign("tiny", again, key)


@pytest.mark.parametrize("mask", [0x01, 0x20, 0x80])
def test_no_byte_of_a_signature_can_change_unnoticed(mask):
    raw = signing.sign("tiny", FILES, tiny.KEY)

    for position in range(len(raw)):
        changed = bytearray(raw)
        changed[position] ^= mask
        with pytest.raises((FormatError, KeyNotTrusted, BadSignature)):
            signing.verify(bytes(changed), tiny.trusted())


def test_a_signature_cut_off_anywhere_is_refused():
    raw = signing.sign("tiny", FILES, tiny.KEY)

    for length in range(len(raw)):
        with pytest.raises(FormatError):
            signing.Signature.parse(raw[:length])


@settings(deadline=None)
@given(st.binary(max_size=200) | st.recursive(st.none() | st.text(), st.lists).map(encoded))
def test_noise_is_no_signature(noise):
    with pytest.raises(FormatError):
        signing.Signature.parse(noise)


# --- who signed ----------------------------------------------------------------------------------------------------


@every_curve
def test_one_of_several_trusted_keys_is_enough(key):
    trusted = [other.public_key() for other in KEYS.values()]

    assert signing.verify(signing.sign("tiny", FILES, key), trusted).files == FILES


def test_another_key_is_not_trusted_and_both_are_named():
    raw = signing.sign("tiny", FILES, tiny.OTHER_KEY)

    with pytest.raises(KeyNotTrusted) as refused:
        signing.verify(raw, tiny.trusted())

    assert signing.fingerprint(tiny.OTHER_KEY.public_key())[:16] in str(refused.value)
    assert signing.fingerprint(tiny.KEY.public_key())[:16] in str(refused.value)


def test_where_no_key_is_trusted_nothing_is():
    with pytest.raises(KeyNotTrusted, match="trusted here: none"):
        signing.verify(signing.sign("tiny", FILES, tiny.KEY), [])


def test_a_key_that_is_named_must_be_the_key_that_signed():
    made = document(tiny.OTHER_KEY)
    made["verificationMaterial"]["publicKey"]["hint"] = signing.fingerprint(tiny.KEY.public_key())

    with pytest.raises(BadSignature):
        signing.verify(encoded(made), tiny.trusted())


def test_a_signature_cannot_be_moved_to_another_statement():
    made, other = document(), document(files=FILES | {"evil": "e" * 64})
    made["dsseEnvelope"]["payload"] = other["dsseEnvelope"]["payload"]

    with pytest.raises(BadSignature):
        signing.verify(encoded(made), tiny.trusted())


def test_a_signature_for_another_payload_type_does_not_count():
    """DSSE signs the type along with the bytes: what was signed as something else cannot pass for a statement."""
    payload = encoded(statement())

    assert signing.verify(signed(payload), tiny.trusted()).files == FILES
    with pytest.raises(BadSignature):
        signing.verify(signed(payload, payload_type=b"text/plain"), tiny.trusted())


def test_a_key_that_is_given_as_bytes_and_not_by_its_hint_is_not_trusted():
    """Pre-1.1 signatures carry the key itself; the message must not tell a key's user to use a key."""
    made = document()
    made["verificationMaterial"]["publicKey"] = {"rawBytes": "QQ==", "keyDetails": "PKIX_ECDSA_P256_SHA_256"}

    assert signing.Signature.parse(encoded(made)).method == "key"
    with pytest.raises(KeyNotTrusted, match="hint"):
        signing.verify(encoded(made), tiny.trusted())


# --- what the specification leaves open ----------------------------------------------------------------------------


@pytest.mark.parametrize("keyid", [{}, {"keyid": ""}, {"keyid": None}, {"keyid": "mine"}])
def test_a_keyid_may_be_absent_empty_null_or_anything(keyid):
    made = document()
    made["dsseEnvelope"]["signatures"][0] = {"sig": made["dsseEnvelope"]["signatures"][0]["sig"], **keyid}

    assert signing.verify(encoded(made), tiny.trusted()).files == FILES


@pytest.mark.parametrize("extra", [{}, {"tlogEntries": []}, {"timestampVerificationData": None}])
def test_a_key_s_signature_may_leave_sigstore_s_fields_out_or_empty(extra):
    made = document()
    made["verificationMaterial"].update(extra)

    assert signing.verify(encoded(made), tiny.trusted()).files == FILES


def test_the_paths_that_were_ignored_need_not_be_listed():
    said = statement()
    del said["predicate"]["serialization"]["ignore_paths"]

    assert signing.verify(signed(encoded(said)), tiny.trusted()).files == FILES


def test_a_file_s_unknown_fields_are_ignored():
    said = statement()
    said["predicate"]["resources"][0]["annotations"] = {"colour": "red"}

    assert signing.verify(signed(encoded(said)), tiny.trusted()).files == FILES


# --- what is refused -----------------------------------------------------------------------------------------------


def put(value, *path):
    """A bend that puts ``value`` at ``path``; None takes it away."""

    def bend(tree):
        *above, last = path
        for step in above:
            tree = tree[step]
        if value is None:
            del tree[last]
        else:
            tree[last] = value

    return bend


@pytest.mark.parametrize(
    "bend",
    [
        put("application/vnd.dev.sigstore.bundle.v0.2+json", "mediaType"),
        put(None, "mediaType"),
        put({}, "messageSignature"),
        put({}, "verificationMaterial"),
        put({"publicKey": {}}, "verificationMaterial"),
        put({"publicKey": {"hint": 7}}, "verificationMaterial"),
        put({"x509CertificateChain": {"certificates": []}}, "verificationMaterial"),
        put({"certificate": {"rawBytes": "QQ=="}, "tlogEntries": []}, "verificationMaterial"),
        put("text/plain", "dsseEnvelope", "payloadType"),
        put([], "dsseEnvelope", "signatures"),
        put("", "dsseEnvelope", "payload"),
        put("e30", "dsseEnvelope", "payload"),
        put("e31=", "dsseEnvelope", "payload"),
        put("e30=\n", "dsseEnvelope", "payload"),
        put("e3 0=", "dsseEnvelope", "payload"),
        put("e30=é", "dsseEnvelope", "payload"),
        put("", "dsseEnvelope", "signatures", 0, "sig"),
        put("é", "dsseEnvelope", "signatures", 0, "sig"),
        put("x", "dsseEnvelope", "signatures", 0, "cert"),
    ],
)
def test_a_document_that_is_not_the_published_form_is_refused(bend):
    made = document()
    bend(made)

    with pytest.raises(FormatError, match=r"signature"):
        signing.Signature.parse(encoded(made))


SERIALIZATION, FIRST = ("predicate", "serialization"), ("predicate", "resources", 0)


@pytest.mark.parametrize(
    "bend",
    [
        put("https://in-toto.io/Statement/v0.1", "_type"),
        put("https://model_signing/Digests/v0.1", "predicateType"),
        put("x", "more"),
        put("x", "predicate", "more"),
        put("x", *SERIALIZATION, "more"),
        put("shards", *SERIALIZATION, "method"),
        put("blake3", *SERIALIZATION, "hash_type"),
        put(True, *SERIALIZATION, "allow_symlinks"),
        put([], "predicate", "resources"),
        put("blake3", *FIRST, "algorithm"),
        put("A" * 64, *FIRST, "digest"),
        put("a" * 63, *FIRST, "digest"),
        put("a" * 64 + "\n", *FIRST, "digest"),
        put("", *FIRST, "digest"),
        put("b" * 64, *FIRST, "digest"),
        put("proof/frames", *FIRST, "name"),
        put([], "subject"),
        put("0" * 64, "subject", 0, "digest", "sha256"),
        put({"sha512": "0" * 128}, "subject", 0, "digest"),
    ],
)
def test_a_statement_that_skerry_does_not_make_is_refused_though_it_is_signed(bend):
    said = statement()
    bend(said)

    with pytest.raises(FormatError, match="signature: "):
        signing.verify(signed(encoded(said)), tiny.trusted())


def test_a_file_that_is_listed_twice_is_refused_though_the_root_digest_fits():
    said = statement()
    said["predicate"]["resources"].insert(0, said["predicate"]["resources"][0])

    with pytest.raises(FormatError, match=r"signature: its files are .*doubled"):
        signing.verify(signed(encoded(said)), tiny.trusted())


def test_two_subjects_are_refused():
    said = statement()
    said["subject"] *= 2

    with pytest.raises(FormatError, match="signature: "):
        signing.verify(signed(encoded(said)), tiny.trusted())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b'"\xff"',
        NESTED,
        b'{"mediaType":"\xff"}',
        b'{"verificationMaterial":{"deep":%s}}' % NESTED,
        b'{"verificationMaterial":{"tlogEntries":[%s]}}' % NESTED,
        b'{"deep":%s}' % NESTED,
    ],
    ids=["empty", "null", "string", "list", "not-utf-8", "material", "log", "unknown"],
)
def test_hostile_json_is_refused_as_a_format_before_anyone_is_trusted(raw):
    with pytest.raises(FormatError):
        signing.Signature.parse(raw)


@pytest.mark.parametrize(
    "payload",
    [b"{", b"{}", b'{"_type":"\xff"}', b'{"predicate":{"resources":[{"deep":%s}]}}' % NESTED, NESTED],
    ids=["half", "empty", "not-utf-8", "deep", "list"],
)
def test_a_hostile_statement_is_refused_as_a_format(payload):
    with pytest.raises(FormatError):
        signing.Signature.parse(signed(payload))


# --- keys ----------------------------------------------------------------------------------------------------------


def test_a_new_key_is_its_owner_s_alone_and_signs(tmp_path):
    path = tmp_path / "keys" / "signer.pem"

    key = signing.make_key(Disk(), path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.load_key(path).private_numbers() == key.private_numbers()
    trusted = [signing.load_public_key(path.with_name("signer.pem.pub"))]
    assert signing.verify(signing.sign("tiny", FILES, key), trusted).files == FILES


def test_a_new_key_stays_its_owner_s_alone_where_an_attempt_was_cut_off(tmp_path):
    """A half-written key of an earlier attempt may lie there with whatever mode."""
    path = tmp_path / "signer.pem"
    part = Path(f"{path}.part")
    part.touch()
    part.chmod(0o644)

    signing.make_key(Disk(), path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@every_curve
def test_a_key_is_read_from_its_pem(tmp_path, key):
    assert signing.load_key(private_pem(tmp_path, key)).private_numbers() == key.private_numbers()
    assert signing.load_public_key(public_pem(tmp_path, key)) == key.public_key()


FOREIGN = {
    "ed25519": ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)),
    "rsa": rsa.generate_private_key(65537, 1024),
    "secp256k1": ec.derive_private_key(0xA4, ec.SECP256K1()),
}


@pytest.mark.parametrize("key", FOREIGN.values(), ids=FOREIGN)
def test_a_key_of_another_kind_is_refused_by_its_file_s_name(tmp_path, key):
    with pytest.raises(UsageError, match=r"signer\.pem"):
        signing.load_key(private_pem(tmp_path, key))
    (tmp_path / "signer.pub").write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(UsageError, match=r"signer\.pub"):
        signing.load_public_key(tmp_path / "signer.pub")


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 100, b"ssh-ed25519 AAAA", SHORT_CURVE])
@pytest.mark.parametrize("load", [signing.load_key, signing.load_public_key])
def test_what_is_no_key_is_refused_by_its_file_s_name(tmp_path, load, content):
    path = tmp_path / "signer.pem"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(UsageError, match=r"signer\.pem"):
        load(path)


def test_an_encrypted_key_is_refused_with_words(tmp_path):
    path = tmp_path / "signer.pem"
    locked = serialization.BestAvailableEncryption(b"secret")
    path.write_bytes(tiny.KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))

    with pytest.raises(UsageError, match="encrypted"):
        signing.load_key(path)


def test_a_private_key_is_no_public_key_and_the_other_way_round(tmp_path):
    with pytest.raises(UsageError):
        signing.load_public_key(private_pem(tmp_path, tiny.KEY))
    with pytest.raises(UsageError):
        signing.load_key(public_pem(tmp_path, tiny.KEY))
