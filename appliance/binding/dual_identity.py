"""The two private extensions of a dual-identity certificate: DualIdentity and the small OwnerId, DER both ways.

    DualIdentity ::= SEQUENCE {
      version       INTEGER { v1(0) } DEFAULT v1,
      ownerId       IA5String (SIZE (1..120)),
      ownerKey      SubjectPublicKeyInfo,
      model         ENUMERATED { agentMediated(0), ownerMediated(1), serverMediated(2), standing(3) },
      approval      OCTET STRING,         -- compact JWS; its SHA-256 if model = standing or form = webauthn
      earDigest [0] IMPLICIT OCTET STRING (SIZE (32)) OPTIONAL,
      logIndex  [1] IMPLICIT OCTET STRING OPTIONAL,
      approvalForm [2] IMPLICIT ENUMERATED { jws(0), webauthn(1) } DEFAULT jws }

Both are non-critical, because TLS libraries refuse critical extensions that they do not know. The second exists because
FreeRADIUS cuts extensions of more than about 510 bytes. A certificate with neither is a single identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding.approval import MAX_BYTES as MAX_APPROVAL
from appliance.binding.errors import Malformed, OwnerIdsDiffer
from appliance.binding.facts import Model
from appliance.binding.identifier import Kind, read_kind
from est import der as tlv
from est.chains import facts_of
from est.errors import BodyMalformed, CertificateMalformed
from est.keys import is_ec, read_spki, spki

ARC = "1.3.6.1.4.1.32473.2026.1"
"""Example arc under the documentation enterprise number; a real deployment configures its own."""

ENUMERATED = 0x0A
MAX_EXTENSION = 8192
_MODELS = (Model.AGENT_MEDIATED, Model.OWNER_MEDIATED, Model.SERVER_MEDIATED, Model.STANDING)
_EAR_DIGEST, _LOG_INDEX, _APPROVAL_FORM = 0x80, 0x81, 0x82
_WEBAUTHN = b"\x01"
_CURVES = frozenset({"secp256r1", "secp384r1"})


@dataclass(frozen=True, slots=True)
class DualIdentity:
    """Who stands behind an agent's certificate: the owner's name and key, and the approval or its hash."""

    owner_id: str
    owner_key: ec.EllipticCurvePublicKey
    model: Model
    approval: str | bytes
    """The approval's compact JWS; its SHA-256 (32 bytes) if the model is standing or a passkey signed."""
    ear_digest: bytes | None = None
    log_index: bytes | None = None
    """Sequence number of the audit entry, big-endian; see `log_index_of`."""
    is_by_passkey: bool = False
    """Whether the approval has the form that passkeys have (`approvalForm` webauthn)."""

    @property
    def log_sequence(self) -> int | None:
        """The audit entry's sequence number."""
        return None if self.log_index is None else int.from_bytes(self.log_index, "big")


def log_index_of(sequence: int) -> bytes:
    """The octets that stand for an audit sequence number."""
    return sequence.to_bytes(8, "big")


def write(dual: DualIdentity) -> bytes:
    """DER of DualIdentity; raises Malformed for what the module's syntax does not allow."""
    is_hash = isinstance(dual.approval, bytes)
    if is_hash != (dual.model is Model.STANDING or dual.is_by_passkey):
        raise _malformed("a standing approval or a passkey's stands in it as a hash, every other one whole")
    approval = dual.approval if isinstance(dual.approval, bytes) else dual.approval.encode("ascii")
    parts = [
        tlv.tlv(tlv.IA5_STRING, _owner_octets(dual.owner_id)),
        spki(dual.owner_key),
        tlv.tlv(ENUMERATED, bytes((_MODELS.index(dual.model),))),
        tlv.tlv(tlv.OCTET_STRING, approval),
    ]
    if dual.ear_digest is not None:
        parts.append(tlv.tlv(_EAR_DIGEST, dual.ear_digest))
    if dual.log_index is not None:
        parts.append(tlv.tlv(_LOG_INDEX, dual.log_index))
    if dual.is_by_passkey:
        parts.append(tlv.tlv(_APPROVAL_FORM, _WEBAUTHN))
    der = tlv.sequence(*parts)
    read(der)
    return der


def read(der: bytes) -> DualIdentity:
    """DualIdentity from the extension's value: every octet is accounted for, or it is Malformed.

    The owner identifier must be canonical (IdentifierMalformed, IdentifierKindWrong).
    """
    if len(der) > MAX_EXTENSION:
        raise _malformed(f"more than {MAX_EXTENSION} bytes")
    try:
        return _read(der)
    except BodyMalformed as error:
        raise _malformed(error.detail) from error


def write_owner_id(owner_id: str) -> bytes:
    """DER of OwnerId: two octets of header, then the identifier."""
    return tlv.tlv(tlv.IA5_STRING, _owner_octets(owner_id))


def read_owner_id(der: bytes) -> str:
    """OwnerId from the extension's value; raises Malformed, IdentifierMalformed, IdentifierKindWrong."""
    try:
        start, stop = tlv.only(der, 0, len(der), tlv.IA5_STRING)
    except BodyMalformed as error:
        raise Malformed(error.detail, object="OwnerId") from error
    return _owner_text(der[start:stop])


def extensions(dual: DualIdentity, arc: str = ARC) -> tuple[tuple[x509.UnrecognizedExtension, bool], ...]:
    """Both extensions with their criticality (never), ready for the shape of an agent's certificate."""
    values = (write(dual), write_owner_id(dual.owner_id))
    return tuple((x509.UnrecognizedExtension(oid, der), False) for oid, der in zip(oids(arc), values, strict=True))


@lru_cache(maxsize=8)
def oids(arc: str = ARC) -> tuple[x509.ObjectIdentifier, x509.ObjectIdentifier]:
    """The object identifiers of DualIdentity and of OwnerId."""
    return x509.ObjectIdentifier(f"{arc}.1"), x509.ObjectIdentifier(f"{arc}.2")


def of_certificate(certificate: x509.Certificate, arc: str = ARC) -> DualIdentity | None:
    """What a certificate says about its owner; None if it has neither extension (a single identity).

    Raises Malformed, Identifier..., and OwnerIdsDiffer if only one of the two is there or they disagree.
    """
    dual_oid, owner_oid = oids(arc)
    try:
        private = facts_of(certificate).private
    except CertificateMalformed as error:
        raise Malformed(error.detail, object="certificate") from error
    dual, owner = private.get(dual_oid), private.get(owner_oid)
    if dual is None and owner is None:
        return None
    if dual is None or owner is None:
        raise OwnerIdsDiffer("one of the two extensions is missing")
    identity = read(dual)
    if read_owner_id(owner) != identity.owner_id:
        raise OwnerIdsDiffer("the two extensions name different owners")
    return identity


@lru_cache(maxsize=64)
def _read(der: bytes) -> DualIdentity:
    at, end = tlv.only(der, 0, len(der), tlv.SEQUENCE)
    # version v1 is the default and DER does not encode defaults: an INTEGER here is another version or not DER
    start, at = tlv.expect(der, at, end, tlv.IA5_STRING)
    owner_id = _owner_text(der[start:at])
    key_at = at
    _, at = tlv.expect(der, at, end, tlv.SEQUENCE)
    owner_key = _read_key(der[key_at:at])
    start, at = tlv.expect(der, at, end, ENUMERATED)
    if at - start != 1 or der[start] >= len(_MODELS):
        raise _malformed("the model is not one that we know")
    model = _MODELS[der[start]]
    start, at = tlv.expect(der, at, end, tlv.OCTET_STRING)
    octets = der[start:at]
    optional: dict[int, bytes] = {}
    for tag, _, start, stop in tlv.elements(der, at, end):
        if tag <= max(optional, default=0) or tag not in (_EAR_DIGEST, _LOG_INDEX, _APPROVAL_FORM):
            raise _malformed("an element that is unknown, repeated or out of order")
        optional[tag] = der[start:stop]
    if optional.get(_APPROVAL_FORM, _WEBAUTHN) != _WEBAUTHN:
        raise _malformed("the approval has a form that we do not know, or the default is spelled out")
    is_by_passkey = _APPROVAL_FORM in optional
    approval = _read_approval(octets, is_hash=model is Model.STANDING or is_by_passkey)
    if len(optional.get(_EAR_DIGEST, bytes(32))) != 32:
        raise _malformed("earDigest does not have 32 octets")
    if not 1 <= len(optional.get(_LOG_INDEX, b"0")) <= 64:
        raise _malformed("logIndex does not have 1 to 64 octets")
    return DualIdentity(
        owner_id,
        owner_key,
        model,
        approval,
        optional.get(_EAR_DIGEST),
        optional.get(_LOG_INDEX),
        is_by_passkey,
    )


def _read_key(der: bytes) -> ec.EllipticCurvePublicKey:
    try:
        key = read_spki(der)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _malformed("ownerKey cannot be read") from error
    if not is_ec(key) or key.curve.name not in _CURVES:
        raise _malformed("ownerKey is not on P-256 or P-384")
    if spki(key) != der:
        raise _malformed("ownerKey is not in its one canonical form")
    return key


def _read_approval(octets: bytes, *, is_hash: bool) -> str | bytes:
    if is_hash:
        if len(octets) != 32:
            raise _malformed("the hash of an approval has 32 octets")
        return octets
    if not 0 < len(octets) <= MAX_APPROVAL or not octets.isascii():
        raise _malformed(f"the approval is not ASCII of 1 to {MAX_APPROVAL} bytes")
    return octets.decode("ascii")


def _owner_text(octets: bytes) -> str:
    try:
        return read_kind(octets.decode("ascii"), Kind.OWNER).uri
    except UnicodeDecodeError as error:
        raise _malformed("ownerId is not ASCII") from error


def _owner_octets(owner_id: str) -> bytes:
    return read_kind(owner_id, Kind.OWNER).uri.encode("ascii")


def _malformed(what: str) -> Malformed:
    return Malformed(f"DualIdentity: {what}", object="DualIdentity")
