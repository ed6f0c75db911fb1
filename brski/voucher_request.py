"""Voucher-requests of pledge and registrar: leaves, JSON form, signed form (RFC 8995, sections 3 and 5.2 to 5.5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from brski import leaves, sealed, voucher
from brski.dialect import STRICT, Dialect
from brski.errors import VoucherRequestMalformed, VoucherRequestSignatureInvalid
from brski.leaves import Assertion

KEY = "ietf-voucher-request:voucher"
LEGACY_KEY = voucher.KEY
"""Of drafts and of implementations that stayed with them."""


@dataclass(frozen=True, slots=True)
class VoucherRequest:
    """What a pledge (PVR) or a registrar (RVR) asks for.

    `proximity_registrar_cert` is DER and belongs to a PVR; `idevid_issuer` and `prior_signed_voucher_request` (the PVR,
    unchanged) belong to an RVR. pinned-domain-cert, last-renewal-date and domain-cert-revocation-checks mean nothing in
    a request and are not kept (RFC 8995, section 3.4).
    """

    serial_number: str
    nonce: str | None = None
    assertion: Assertion | None = None
    created_on: datetime | None = None
    idevid_issuer: bytes | None = None
    proximity_registrar_cert: bytes | None = None
    prior_signed_voucher_request: bytes | None = None
    sealed: bytes = field(default=b"", repr=False, compare=False)


def read(body: bytes, dialect: Dialect = STRICT, *, sealed: bytes = b"") -> VoucherRequest:
    """The voucher-request in a JSON document (the signed content); `sealed` is what that was found in.

    Raises VoucherRequestMalformed.
    """
    members = leaves.Members(body, KEY, VoucherRequestMalformed, dialect=dialect, legacy=LEGACY_KEY)
    if members.is_legacy and members.has("pinned-domain-cert"):
        # the key does not tell them apart in this dialect, so this leaf must: only a voucher pins
        raise VoucherRequestMalformed("a voucher stands where a voucher-request is due")
    return VoucherRequest(
        serial_number=members.required("serial-number", leaves.read_string),
        nonce=members.optional("nonce", leaves.read_nonce),
        assertion=members.optional("assertion", leaves.read_assertion),
        created_on=members.date("created-on"),
        idevid_issuer=members.optional("idevid-issuer", leaves.read_binary),
        proximity_registrar_cert=members.optional("proximity-registrar-cert", leaves.read_binary),
        prior_signed_voucher_request=members.optional("prior-signed-voucher-request", leaves.read_binary),
        sealed=sealed,
    )


def write(request: VoucherRequest, dialect: Dialect = STRICT) -> bytes:
    """The JSON document of a voucher-request; absent leaves are left out."""
    return leaves.write_members(
        LEGACY_KEY if dialect.legacy_key else KEY,
        {
            "created-on": leaves.write_date(request.created_on),
            "assertion": request.assertion.value if request.assertion is not None else None,
            "serial-number": request.serial_number,
            "idevid-issuer": leaves.write_binary(request.idevid_issuer),
            "nonce": request.nonce,
            "proximity-registrar-cert": leaves.write_binary(request.proximity_registrar_cert),
            "prior-signed-voucher-request": leaves.write_binary(request.prior_signed_voucher_request),
        },
    )


def unseal(
    body: bytes, media_type: str, *, accept_id_data: bool = True, dialect: Dialect = STRICT
) -> tuple[VoucherRequest, sealed.Unsealed]:
    """A signed voucher-request and who signed it; the signer's chain is the caller's business.

    Raises MediaTypeUnsupported, VoucherRequestMalformed, VoucherRequestSignatureInvalid.
    """
    opened = sealed.unseal(
        body,
        media_type,
        malformed=VoucherRequestMalformed,
        invalid=VoucherRequestSignatureInvalid,
        accept_id_data=accept_id_data,
        dialect=dialect,
    )
    return read(opened.content, dialect, sealed=opened.body), opened
