"""The two private extensions: published bytes both ways, and no other byte string for the same meaning."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.binding import dual_identity
from appliance.binding.errors import BindingError, IdentifierMalformed, Malformed, OwnerIdsDiffer
from appliance.binding.facts import Model
from est import der as tlv
from tests.appliance.binding.example import AGENT, EXAMPLE, FOLDER, KEYS, LEAF, OTHER_OWNER, OWNER, certificate

DER = bytes.fromhex(EXAMPLE["dual_identity_ext_der_hex"])
OWNER_DER = bytes.fromhex(EXAMPLE["owner_id_ext_der_hex"])
DUAL = dual_identity.read(DER)


def _parts() -> list[bytes]:
    """The elements of the published extension."""
    at, end = tlv.only(DER, 0, len(DER), tlv.SEQUENCE)
    return [DER[start:stop] for _, start, _, stop in tlv.elements(DER, at, end)]


OWNER_PART, KEY_PART, MODEL_PART, APPROVAL_PART, EAR_PART = _parts()


@pytest.mark.req("A-30", "W-10", "W-11")
def test_published_extension_holds_owner_key_model_and_approval() -> None:
    assert (DUAL.owner_id, DUAL.owner_key, DUAL.model) == (OWNER, KEYS["owner"], Model.AGENT_MEDIATED)
    assert DUAL.approval == EXAMPLE["approval"] and DUAL.log_index is None
    assert dual_identity.of_certificate(LEAF) == DUAL


@pytest.mark.req("A-30", "W-12")
def test_writing_gives_the_published_bytes() -> None:
    assert dual_identity.write(DUAL) == DER
    assert dual_identity.write_owner_id(OWNER) == OWNER_DER
    assert OWNER_DER[0] == 0x16 and OWNER_DER[1] == len(OWNER) and dual_identity.read_owner_id(OWNER_DER) == OWNER


@pytest.mark.req("A-112")
def test_log_index_is_the_audit_sequence() -> None:
    dual = replace(DUAL, log_index=dual_identity.log_index_of(77))
    assert dual_identity.read(dual_identity.write(dual)).log_sequence == 77


@pytest.mark.req("W-10", "W-12")
def test_neither_extension_is_critical_and_the_arc_is_configurable() -> None:
    arc = "1.3.6.1.4.1.99999.7"
    made = dual_identity.extensions(DUAL, arc)
    assert [(one.oid.dotted_string, critical) for one, critical in made] == [(f"{arc}.1", False), (f"{arc}.2", False)]
    assert dual_identity.of_certificate(LEAF, arc) is None


@pytest.mark.req("W-12", "W-13")
def test_sizes_stay_within_their_budget() -> None:
    assert len(LEAF.public_bytes(Encoding.DER)) <= 2000
    assert len(OWNER_DER) <= 122 and 2 + 2 * len(OWNER_DER) <= 253
    longest = "spiffe://" + "a" * (120 - len("spiffe:///owner/") - 36) + OWNER[-43:]
    assert len(longest) == 120 and dual_identity.write_owner_id(longest)[:2] == b"\x16\x78"
    with pytest.raises(BindingError):
        dual_identity.write_owner_id(longest.replace("//", "//a", 1))


def test_standing_model_holds_a_hash_and_only_a_hash() -> None:
    dual = replace(DUAL, model=Model.STANDING, approval=bytes(32))
    assert dual_identity.read(dual_identity.write(dual)) == dual
    for wrong in (replace(DUAL, model=Model.STANDING), replace(DUAL, approval=bytes(32)), replace(dual, approval=b"x")):
        with pytest.raises(Malformed):
            dual_identity.write(wrong)


def _other_key(curve: ec.EllipticCurve) -> bytes:
    return ec.generate_private_key(curve).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _compressed() -> bytes:
    point = KEYS["owner"].public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    algorithm = tlv.sequence(tlv.oid("1.2.840.10045.2.1"), tlv.oid("1.2.840.10045.3.1.7"))
    return tlv.sequence(algorithm, tlv.tlv(tlv.BIT_STRING, b"\x00" + point))


SAME = [OWNER_PART, KEY_PART, MODEL_PART, APPROVAL_PART]


@pytest.mark.req("A-30")
@pytest.mark.parametrize(
    "der",
    {
        "nothing": b"",
        "trailing byte": DER + b"\x00",
        "trailing element": tlv.sequence(*SAME, EAR_PART, tlv.tlv(0x83, b"x")),
        "trailing byte inside": tlv.tlv(tlv.SEQUENCE, DER[4:] + b"\x00"),
        "cut off": DER[:-1],
        "set for sequence": b"\x31" + DER[1:],
        "spelled-out version": tlv.sequence(tlv.integer(0), *SAME),
        "other version": tlv.sequence(tlv.integer(1), *SAME),
        "order": tlv.sequence(KEY_PART, OWNER_PART, MODEL_PART, APPROVAL_PART),
        "no approval": tlv.sequence(OWNER_PART, KEY_PART, MODEL_PART),
        "utf8 owner": tlv.sequence(tlv.tlv(tlv.UTF8_STRING, OWNER.encode()), *SAME[1:]),
        "long form length": tlv.sequence(b"\x16\x81\x42" + OWNER.encode(), *SAME[1:]),
        "indefinite length": b"\x30\x80" + b"".join(SAME) + b"\x00\x00",
        "p521 key": tlv.sequence(OWNER_PART, _other_key(ec.SECP521R1()), *SAME[2:]),
        "compressed key": tlv.sequence(OWNER_PART, _compressed(), *SAME[2:]),
        "garbage key": tlv.sequence(OWNER_PART, tlv.sequence(tlv.integer(1)), *SAME[2:]),
        "key and more": tlv.sequence(OWNER_PART, tlv.tlv(tlv.SEQUENCE, KEY_PART[2:] + b"\x05\x00"), *SAME[2:]),
        "model as integer": tlv.sequence(OWNER_PART, KEY_PART, tlv.integer(0), APPROVAL_PART),
        "unknown model": tlv.sequence(OWNER_PART, KEY_PART, tlv.tlv(0x0A, b"\x04"), APPROVAL_PART),
        "long model": tlv.sequence(OWNER_PART, KEY_PART, tlv.tlv(0x0A, b"\x00\x00"), APPROVAL_PART),
        "empty model": tlv.sequence(OWNER_PART, KEY_PART, tlv.tlv(0x0A, b""), APPROVAL_PART),
        "empty approval": tlv.sequence(*SAME[:3], tlv.tlv(tlv.OCTET_STRING, b"")),
        "binary approval": tlv.sequence(*SAME[:3], tlv.tlv(tlv.OCTET_STRING, b"\xff\xfe")),
        "huge approval": tlv.sequence(*SAME[:3], tlv.tlv(tlv.OCTET_STRING, b"a" * 4097)),
        "hash without standing": tlv.sequence(*SAME[:3], tlv.tlv(tlv.OCTET_STRING, b"\x80" * 32)),
        "short ear digest": tlv.sequence(*SAME, tlv.tlv(0x80, bytes(31))),
        "explicit ear digest": tlv.sequence(*SAME, tlv.tlv(0xA0, tlv.tlv(tlv.OCTET_STRING, bytes(32)))),
        "ear digest twice": tlv.sequence(*SAME, EAR_PART, EAR_PART),
        "log index before ear digest": tlv.sequence(*SAME, tlv.tlv(0x81, b"\x01"), EAR_PART),
        "empty log index": tlv.sequence(*SAME, tlv.tlv(0x81, b"")),
        "long log index": tlv.sequence(*SAME, tlv.tlv(0x81, bytes(65))),
        "spelled-out form": tlv.sequence(*SAME, tlv.tlv(0x82, b"\x00")),
        "webauthn form": tlv.sequence(*SAME, tlv.tlv(0x82, b"\x01")),
        "too large": tlv.sequence(*SAME, tlv.tlv(0x83, bytes(9000))),
        "deep nesting": b"\x30\x82\x0f\xa0" + b"\x30\x80" * 2000,
    }.items(),
    ids=lambda item: item[0],
)  # fmt: skip
def test_every_other_byte_string_is_malformed(der: tuple[str, bytes]) -> None:
    with pytest.raises(Malformed):
        dual_identity.read(der[1])


@pytest.mark.parametrize(
    "owner", [b"", b"alice", AGENT.encode(), OWNER.encode() + b"\n", OWNER.upper().encode(), b"\xe4"]
)
def test_owner_identifier_that_is_not_canonical_is_refused(owner: bytes) -> None:
    with pytest.raises(BindingError):
        dual_identity.read(tlv.sequence(tlv.tlv(tlv.IA5_STRING, owner), *SAME[1:]))
    with pytest.raises(BindingError):
        dual_identity.read_owner_id(tlv.tlv(tlv.IA5_STRING, owner))


@pytest.mark.parametrize("der", [b"", OWNER_DER + b"\x00", OWNER_DER[:-1], b"\x0c" + OWNER_DER[1:]])
def test_small_extension_is_one_ia5string_and_nothing_else(der: bytes) -> None:
    with pytest.raises((Malformed, IdentifierMalformed)):
        dual_identity.read_owner_id(der)


def test_every_flipped_byte_raises_only_our_refusals_or_reads_as_something_else() -> None:
    for at in range(len(DER)):
        for bit in (0x01, 0x20, 0x80):
            damaged = DER[:at] + bytes((DER[at] ^ bit,)) + DER[at + 1 :]
            try:
                assert dual_identity.write(dual_identity.read(damaged)) == damaged
            except BindingError:
                continue


def _only(index: int, **changes: object) -> x509.Certificate:
    pair = [one for one, _ in dual_identity.extensions(replace(DUAL, **changes))]
    return certificate(extensions=[pair[index]])


@pytest.mark.req("A-2")
def test_certificate_with_neither_extension_is_a_single_identity() -> None:
    assert dual_identity.of_certificate(certificate(extensions=[])) is None


@pytest.mark.req("A-30")
def test_certificate_with_one_extension_or_two_owners_is_refused() -> None:
    big, small = (one for one, _ in dual_identity.extensions(DUAL))
    other = x509.UnrecognizedExtension(small.oid, dual_identity.write_owner_id(OTHER_OWNER))
    for extensions in ([big], [small], [big, other]):
        with pytest.raises(OwnerIdsDiffer):
            dual_identity.of_certificate(certificate(extensions=extensions))


@pytest.mark.interop
@pytest.mark.req("W-3", "W-10")
def test_openssl_shows_one_uri_name_and_both_extensions() -> None:
    text = subprocess.run(
        ["openssl", "x509", "-in", FOLDER / "good.pem", "-noout", "-text"], capture_output=True, text=True, check=True
    ).stdout
    assert text.count("URI:") == 1 and "1.3.6.1.4.1.32473.2026.1.1" in text and "1.3.6.1.4.1.32473.2026.1.2" in text
