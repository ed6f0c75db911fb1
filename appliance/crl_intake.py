"""Takes in a CRL of our own that says more than the store does: after a restored backup, nothing may be unrevoked.

What the list names is revoked here too, certificates of which the store has never heard included, and the next list has
a higher number than this one. Taking in a list twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any, ClassVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.ca import CertificateAuthority, revoke
from appliance.errors import ApplianceError
from appliance.hierarchy import IssuingCa
from appliance.store import Store, Tx, certificates, crls
from est.revocation import REASONS

Json = Mapping[str, Any]
STRANGER = "unknown"
"""The profile of a certificate of which only its revocation is known."""
_BATCH = 500


class CrlForeign(ApplianceError):
    """The file is no CRL, or not one that an issuing CA of this home has signed."""

    reason: ClassVar[str] = "crl-foreign"


@dataclass(frozen=True, slots=True)
class _Entry:
    serial: int
    at: datetime
    reason: str


async def take_crl(data: bytes, *, ca: CertificateAuthority, store: Store, actor: Actor) -> Json:
    """Revoke what a list of ours (DER or PEM) names; answers how many that were. Raises CrlForeign."""
    crl, issuing, number = _read(data, ca)
    listed, added, strangers = iter(crl), 0, 0
    while batch := [_entry(one) for one in islice(listed, _BATCH)]:
        more, unknown = await store.write(lambda tx, batch=batch: _take(tx, issuing, batch, actor), essential=True)  # type: ignore[misc]
        added, strangers = added + more, strangers + unknown
    told = {"role": issuing.role, "number": number, "entries": len(crl), "revoked": added, "unknown": strangers}

    def conclude(tx: Tx) -> None:
        crls.raise_number(tx, issuing.label, number)
        audit.append(tx, AuditEvent("crl-taken-in", actor, object=issuing.role, fields=told))

    await store.write(conclude, essential=True)
    return told


def _read(data: bytes, ca: CertificateAuthority) -> tuple[x509.CertificateRevocationList, IssuingCa, int]:
    try:
        read = x509.load_pem_x509_crl if data.lstrip().startswith(b"-----BEGIN") else x509.load_der_x509_crl
        crl = read(data)
        key = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        issuing = ca.of_key(key)
        if issuing is not None and crl.is_signature_valid(issuing.signer.public_key()):
            return crl, issuing, number
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound) as error:
        raise CrlForeign("the file cannot be read as a CRL with a number and an issuer's key identifier") from error
    raise CrlForeign("no issuing CA of this home has signed this CRL")


def _entry(one: x509.RevokedCertificate) -> _Entry:
    try:
        reason = str(one.extensions.get_extension_for_class(x509.CRLReason).value.reason.value)
    except x509.ExtensionNotFound:
        reason = "unspecified"
    return _Entry(one.serial_number, one.revocation_date_utc, reason if reason in REASONS else "unspecified")


def _take(tx: Tx, issuing: IssuingCa, entries: Sequence[_Entry], actor: Actor) -> tuple[int, int]:
    """How many were revoked, and how many of these were unknown."""
    added = strangers = 0
    for entry in entries:
        row = certificates.standing(tx, issuing.key_identifier, entry.serial)
        if row is None:
            end = issuing.certificate.not_valid_after_utc  # when its own life ends nobody knows here
            columns = {"profile": STRANGER}
            unknown = certificates.Pending(
                issuing.role, issuing.key_identifier, entry.serial, b"", b"", entry.at, end, columns
            )
            certificates.add(tx, unknown)
            strangers += 1
        elif row.state == certificates.REVOKED:
            continue
        revoke(tx, issuing.key_identifier, entry.serial, reason=entry.reason, actor=actor)
        added += 1
    return added, strangers
