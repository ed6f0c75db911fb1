"""What goes to the root's key and comes back, as two JSON documents, and the signing between them.

The key may lie in the home or on a machine without a network, which needs no home: `sign` takes the key, the request
and a time, and answers certificates. A request carries one CSR per issuing key (PKCS#10, so that each proves its key)
and the root it is meant for. With `new_root` the answer also has a new root certificate and the two links (E-100).

The answer is held against the request's keys when it is taken in (`read_answer`): whoever could change it on the way
gains nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance.errors import ApplianceError, KeyMismatch
from appliance.hierarchy import ROOT, check_ca, new_serial, sign_shape
from est import csr, der, profiles
from est.certificates import check_readable, ski_of
from est.errors import EstError
from est.keys import spki, spki_sha256
from est.profiles import Terms
from est.signer import KeySigner, Signer

_UNREADABLE = (KeyError, ValueError, TypeError, AttributeError, x509.InvalidVersion)
REQUEST, ANSWER = "appliance-root-request-1", "appliance-root-answer-1"
OLD_WITH_NEW, NEW_WITH_OLD = "old-with-new", "new-with-old"


class RootDocumentMalformed(ApplianceError):
    """The file is no request to the root, or no answer of it, or not one for the keys of this home."""

    reason: ClassVar[str] = "root-document-malformed"


@dataclass(frozen=True, slots=True)
class RootRequest:
    """What the root is to sign: PKCS#10 in DER by the label of each issuing key."""

    root: x509.Certificate
    csrs: Mapping[str, bytes]
    issuing_days: int
    root_days: int
    backdate_seconds: int
    new_root: bool = False

    @property
    def id(self) -> str:
        """Names what is asked, so that an answer to another request is not taken; the same at every asking."""
        keys = [f"{label} {spki_sha256(_asked(one)[1]).hex()}" for label, one in sorted(self.csrs.items())]
        told = [spki_sha256(self.root).hex(), str(self.new_root), *keys]
        return hashlib.sha256("\n".join(told).encode()).hexdigest()[:32]


def make_csr(signer: Signer, subject: x509.Name) -> bytes:
    """PKCS#10 in DER by a key that may lie in a token; blocks."""
    key = signer.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    info = der.sequence(der.integer(0), subject.public_bytes(), key, der.tlv(0xA0, b""))
    return profiles.assemble(info, signer.sign(info), signer.public_key())


def write_request(request: RootRequest) -> str:
    """The document."""
    return json.dumps(
        {
            "type": REQUEST,
            "id": request.id,
            "root": _pem(request.root),
            "csrs": {label: _csr_pem(one) for label, one in request.csrs.items()},
            "issuing_days": request.issuing_days,
            "root_days": request.root_days,
            "backdate_seconds": request.backdate_seconds,
            "new_root": request.new_root,
        },
        indent=2,
    )


def read_request(text: str) -> RootRequest:
    """Raises RootDocumentMalformed."""
    body = _json(text, REQUEST)
    try:
        csrs = {
            str(label): x509.load_pem_x509_csr(pem.encode()).public_bytes(Encoding.DER)
            for label, pem in body["csrs"].items()
        }
        numbers = [body[name] for name in ("issuing_days", "root_days", "backdate_seconds")]
        if not all(type(one) is int and 0 <= one < 100_000 for one in numbers) or type(body["new_root"]) is not bool:
            raise ValueError("numbers")
        root = _certificate(body["root"])
        return RootRequest(root, csrs, numbers[0], numbers[1], numbers[2], body["new_root"])
    except _UNREADABLE as cause:
        raise RootDocumentMalformed("the request to the root cannot be read") from cause


def sign(
    request: RootRequest, key: ec.EllipticCurvePrivateKey, now: datetime, new_key: ec.EllipticCurvePrivateKey | None
) -> str:
    """The answer. `new_key` is the new root's; a request for one needs it, another may not have it.

    Raises RootDocumentMalformed, KeyMismatch where `key` is not the root's, CaExpired.
    """
    if spki(key.public_key()) != spki(request.root):
        raise KeyMismatch("this key is not that of the root which the request is for")
    if request.new_root != (new_key is not None):
        raise RootDocumentMalformed("the request wants no new root" if new_key else "the request wants a new root")
    now = now.replace(microsecond=0)
    check_ca(request.root, None, now, path_length=1)
    made: dict[str, x509.Certificate] = {}
    root, signing = request.root, key
    if new_key is not None:
        made = _new_root(request, key, new_key, now)
        root, signing = made[ROOT], new_key
    start = max(now - timedelta(seconds=request.backdate_seconds), root.not_valid_before_utc)
    end = min(now + timedelta(days=request.issuing_days), root.not_valid_after_utc)
    for label, one in request.csrs.items():
        subject, public = _asked(one)
        terms = Terms.under(root, serial=new_serial(), not_before=start, not_after=end)
        made[label] = sign_shape(profiles.issuing_ca(terms, subject, public), KeySigner(signing))
    certificates = {name: _pem(one) for name, one in made.items()}
    return json.dumps({"type": ANSWER, "id": request.id, "certificates": certificates}, indent=2)


def _new_root(
    request: RootRequest, old_key: ec.EllipticCurvePrivateKey, new_key: ec.EllipticCurvePrivateKey, now: datetime
) -> dict[str, x509.Certificate]:
    """NewWithNew, OldWithNew, NewWithOld with the dates of RFC 4210, section 4.4.1."""
    old, subject = request.root, request.root.subject
    start = now - timedelta(seconds=request.backdate_seconds)
    end = now + timedelta(days=request.root_days)
    if end <= old.not_valid_after_utc:
        # clients take the self-signed certificate that ends last as the current root (RFC 7030, section 4.1.3)
        raise RootDocumentMalformed("a new root must live longer than the old one: raise ca.root_days")
    old_public, new_public = old_key.public_key(), new_key.public_key()
    root = profiles.root_ca(subject, new_public, serial=new_serial(), not_before=start, not_after=end)
    old_with_new = profiles.root_link(
        subject,
        old_public,
        new_public,
        serial=new_serial(),
        not_before=old.not_valid_before_utc,
        not_after=old.not_valid_after_utc,
    )
    new_with_old = profiles.root_link(
        subject, new_public, old_public, serial=new_serial(), not_before=start, not_after=old.not_valid_after_utc
    )
    return {
        ROOT: sign_shape(root, KeySigner(new_key)),
        OLD_WITH_NEW: sign_shape(old_with_new, KeySigner(new_key)),
        NEW_WITH_OLD: sign_shape(new_with_old, KeySigner(old_key)),
    }


def read_answer(text: str, request: RootRequest, now: datetime) -> dict[str, str]:
    """The certificates of an answer, PEM by name, held against the request: its root, its keys.

    Raises RootDocumentMalformed, CaUnsuitable, CaExpired.
    """
    body = _json(text, ANSWER)
    try:
        found = {str(name): _certificate(pem) for name, pem in body["certificates"].items()}
        if body["id"] != request.id:
            raise RootDocumentMalformed("this answers another request than the one that waits here")
    except _UNREADABLE as cause:
        raise RootDocumentMalformed("the answer of the root cannot be read") from cause
    wanted = {*request.csrs, *((ROOT, OLD_WITH_NEW, NEW_WITH_OLD) if request.new_root else ())}
    if set(found) != wanted:
        raise RootDocumentMalformed(f"the answer must hold {', '.join(sorted(wanted))} and nothing else")
    issuer = _check_links(found, request.root, now) if request.new_root else request.root
    for label, asked in request.csrs.items():
        subject, key = _asked(asked)
        check_ca(found[label], issuer, now, path_length=0)
        if spki(found[label]) != spki(key) or found[label].subject != subject:
            raise RootDocumentMalformed(f"the certificate of {label} is for another key or name")
    return {name: _pem(one) for name, one in found.items()}


def _check_links(found: Mapping[str, x509.Certificate], old: x509.Certificate, now: datetime) -> x509.Certificate:
    new, old_with_new, new_with_old = found[ROOT], found[OLD_WITH_NEW], found[NEW_WITH_OLD]
    check_ca(new, None, now, path_length=1)
    check_ca(old_with_new, new, now, path_length=1)
    check_ca(new_with_old, old, now, path_length=1)
    if spki(old_with_new) != spki(old) or spki(new_with_old) != spki(new):
        raise RootDocumentMalformed("a link between the roots is for another key")
    if {one.subject for one in (new, old_with_new, new_with_old)} != {old.subject}:
        raise RootDocumentMalformed("a new root must have the name of the old one")
    if ski_of(new) == ski_of(old) or new.not_valid_after_utc <= old.not_valid_after_utc:
        raise RootDocumentMalformed("a new root must have another key and live longer than the old one")
    return new


def _asked(request: bytes) -> tuple[x509.Name, ec.EllipticCurvePublicKey]:
    try:
        read = csr.read(request)
    except EstError as cause:
        raise RootDocumentMalformed(f"a CSR in the request: {cause.detail}") from cause
    if not isinstance(read.public_key, ec.EllipticCurvePublicKey):
        raise RootDocumentMalformed("a CSR in the request is not for a key on an elliptic curve")
    return read.subject, read.public_key


def _json(text: str, kind: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise RootDocumentMalformed("the file is not JSON") from cause
    if not isinstance(body, dict) or body.get("type") != kind:
        raise RootDocumentMalformed(f"the file is not of the type {kind}")
    return body


def _certificate(pem: str) -> x509.Certificate:
    found = x509.load_pem_x509_certificate(pem.encode())
    check_readable(found)
    return found


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _csr_pem(request: bytes) -> str:
    return x509.load_der_x509_csr(request).public_bytes(Encoding.PEM).decode()
