"""The voucher artefact: its leaves, its JSON form, its signed form (RFC 8366, section 5; RFC 8995, section 5.6)."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509

from brski import leaves, sealed
from brski.dialect import STRICT, Dialect
from brski.errors import PinMissing, VoucherMalformed, VoucherSignatureInvalid
from brski.leaves import Assertion

KEY = "ietf-voucher:voucher"


@dataclass(frozen=True, slots=True)
class Voucher:
    """What the MASA vouches for.

    `pinned_domain_cert` is DER, `nonce` the exact string of the request, `idevid_issuer` the complete extnValue octets
    of the IDevID's authority key identifier. `sealed` holds the signed artefact the voucher was read from, unchanged.
    """

    serial_number: str
    assertion: Assertion
    pinned_domain_cert: bytes | None = field(default=None, repr=False)
    created_on: datetime | None = None
    nonce: str | None = None
    expires_on: datetime | None = None
    idevid_issuer: bytes | None = None
    domain_cert_revocation_checks: bool | None = None
    last_renewal_date: datetime | None = None
    sealed: bytes = field(default=b"", repr=False, compare=False)

    def pin(self) -> x509.Certificate:
        """The pinned domain certificate; raises PinMissing or VoucherMalformed."""
        if self.pinned_domain_cert is None:
            raise PinMissing("the voucher pins no certificate")
        return leaves.read_certificate(self.pinned_domain_cert, "pinned-domain-cert", VoucherMalformed)


def read(body: bytes, dialect: Dialect = STRICT, *, sealed: bytes = b"") -> Voucher:
    """The voucher in a JSON document (the signed content); `sealed` is what that was found in.

    Unknown members are ignored (RFC 8995, section 5.6.1); so is prior-signed-voucher-request. What RFC 8366 forbids on
    sending (nonce together with expires-on) is read, because vouchers of later documents carry both.
    Raises VoucherMalformed.
    """
    members = leaves.Members(body, KEY, VoucherMalformed, dialect=dialect)
    if dialect.legacy_key and (members.has("proximity-registrar-cert") or members.has("prior-signed-voucher-request")):
        raise VoucherMalformed("a voucher-request stands where a voucher is due")
    return Voucher(
        serial_number=members.required("serial-number", leaves.read_string),
        assertion=members.required("assertion", leaves.read_assertion),
        pinned_domain_cert=members.optional("pinned-domain-cert", leaves.read_binary),
        created_on=members.date("created-on"),
        nonce=members.optional("nonce", leaves.read_nonce),
        expires_on=members.date("expires-on"),
        idevid_issuer=members.optional("idevid-issuer", leaves.read_binary),
        domain_cert_revocation_checks=members.optional("domain-cert-revocation-checks", leaves.read_bool),
        last_renewal_date=members.date("last-renewal-date"),
        sealed=sealed,
    )


def write(voucher: Voucher) -> bytes:
    """The JSON document of a voucher; absent leaves are left out.

    Raises VoucherMalformed for the combinations that RFC 8366, section 5.3 forbids.
    """
    if voucher.nonce is not None and voucher.expires_on is not None:
        raise VoucherMalformed("nonce and expires-on exclude each other")
    if voucher.last_renewal_date is not None and voucher.expires_on is None:
        raise VoucherMalformed("last-renewal-date needs expires-on")
    return leaves.write_members(
        KEY,
        {
            "created-on": leaves.write_date(voucher.created_on),
            "expires-on": leaves.write_date(voucher.expires_on),
            "assertion": voucher.assertion.value,
            "serial-number": voucher.serial_number,
            "idevid-issuer": leaves.write_binary(voucher.idevid_issuer),
            "pinned-domain-cert": leaves.write_binary(voucher.pinned_domain_cert),
            "domain-cert-revocation-checks": voucher.domain_cert_revocation_checks,
            "nonce": voucher.nonce,
            "last-renewal-date": leaves.write_date(voucher.last_renewal_date),
        },
    )


def unseal(
    body: bytes, media_type: str, *, accept_id_data: bool = True, dialect: Dialect = STRICT
) -> tuple[Voucher, sealed.Unsealed]:
    """A signed voucher and who signed it; the signature is verified, the signer's chain is the caller's business.

    Raises MediaTypeUnsupported, VoucherMalformed, VoucherSignatureInvalid.
    """
    opened = sealed.unseal(
        body,
        media_type,
        malformed=VoucherMalformed,
        invalid=VoucherSignatureInvalid,
        accept_id_data=accept_id_data,
        dialect=dialect,
    )
    return read(opened.content, dialect, sealed=opened.body), opened
