"""Voucher-requests of pledge and registrar: leaves, JSON form, signed form (RFC 8995, sections 3 and 5.2 to 5.5)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime

from brski import leaves, sealed
from brski.errors import VoucherRequestMalformed, VoucherRequestSignatureInvalid
from brski.leaves import Assertion

KEY = "ietf-voucher-request:voucher"


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


def read(body: bytes) -> VoucherRequest:
    """The voucher-request in a JSON document (the signed content); raises VoucherRequestMalformed."""
    members = leaves.Members(body, KEY, VoucherRequestMalformed)
    return VoucherRequest(
        serial_number=members.required("serial-number", leaves.read_string),
        nonce=members.optional("nonce", leaves.read_nonce),
        assertion=members.optional("assertion", leaves.read_assertion),
        created_on=members.optional("created-on", leaves.read_date),
        idevid_issuer=members.optional("idevid-issuer", leaves.read_binary),
        proximity_registrar_cert=members.optional("proximity-registrar-cert", leaves.read_binary),
        prior_signed_voucher_request=members.optional("prior-signed-voucher-request", leaves.read_binary),
    )


def write(request: VoucherRequest) -> bytes:
    """The JSON document of a voucher-request; absent leaves are left out."""
    return leaves.write_members(
        KEY,
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


def unseal(body: bytes, media_type: str, *, accept_id_data: bool = True) -> tuple[VoucherRequest, sealed.Unsealed]:
    """A signed voucher-request and who signed it; the signer's chain is the caller's business.

    Raises MediaTypeUnsupported, VoucherRequestMalformed, VoucherRequestSignatureInvalid.
    """
    opened = sealed.unseal(
        body,
        media_type,
        malformed=VoucherRequestMalformed,
        invalid=VoucherRequestSignatureInvalid,
        accept_id_data=accept_id_data,
    )
    return replace(read(opened.content), sealed=body), opened
