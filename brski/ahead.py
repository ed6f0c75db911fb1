"""Vouchers without a nonce, asked for before the device comes (RFC 8995, sections 3.1, 5.5 and 5.6).

No pledge has said anything yet: serial number and idevid-issuer come from the site's own list, there is no nonce and no
prior-signed-voucher-request. A MASA answers only registrars that it can authenticate. Such a voucher may be used by
whoever holds it until it expires; whether to have one at all is for the site to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from brski import audit_log, paths, voucher
from brski.audit_log import AuditLog
from brski.dialect import STRICT, Dialect
from brski.errors import MasaAnswerInvalid
from brski.idevid import MasaAddress
from brski.registrar import Registrar, check_masa_reply, follow_audit_log
from brski.voucher import Voucher
from brski.voucher_request import VoucherRequest
from est import chains
from est.exchange import Call, Reply


@dataclass(frozen=True, slots=True)
class AheadExchange:
    """One question to a MASA without a pledge; `device` is idevid-issuer (hex) and serial number."""

    device: tuple[str, str]
    masa: MasaAddress
    call: Call
    own_keys: frozenset[bytes]
    dialect: Dialect = STRICT

    @property
    def audit_log_call(self) -> Call:
        """The question for the device's history: the same signed request again (RFC 8995, section 5.8)."""
        path = f"{self.masa.path}/requestauditlog"
        return Call("POST", path, self.call.media_type, {"accept": paths.JSON}, self.call.body)

    def conclude(self, reply: Reply, now: datetime) -> Voucher:
        """The voucher in the MASA's answer, which must have no nonce and an end.

        Raises MasaRefused, MasaFormatRefused, MasaAuthenticationRequired, MasaUnavailable, MasaAnswerInvalid,
        VoucherMalformed, VoucherSignatureInvalid.
        """
        check_masa_reply(reply, self.call.media_type, self.dialect)
        received, _ = voucher.unseal(reply.body, self.call.media_type, dialect=self.dialect)
        issuer, serial = self.device
        if received.serial_number != serial:
            raise MasaAnswerInvalid("the MASA's voucher is for another device")
        if received.idevid_issuer is not None and received.idevid_issuer.hex() != issuer:
            raise MasaAnswerInvalid("the MASA's voucher is for a device of another issuer")
        if received.nonce is not None:
            raise MasaAnswerInvalid("the MASA's voucher has a nonce that nobody sent")
        if received.expires_on is None or received.expires_on <= now:
            raise MasaAnswerInvalid("the MASA's voucher has no end, or has ended")
        if chains.spki_sha256(received.pin()) not in self.own_keys:
            raise MasaAnswerInvalid("the MASA's voucher pins a certificate that is not ours")
        return received

    def read_audit_log(self, reply: Reply) -> AuditLog:
        """The device's history; raises the MASA's refusals as `conclude` does, and AuditLogMalformed."""
        check_masa_reply(reply, paths.JSON, self.dialect)
        return audit_log.read(reply.body)

    def follow_audit_log(self, reply: Reply) -> Call | None:
        """The call that fetches a log offered as 201 with a Location, None for any other answer."""
        return follow_audit_log(reply, self.masa)


def ask_ahead(
    registrar: Registrar,
    device: tuple[str, str],
    masa: MasaAddress,
    media_type: str,
    *,
    now: datetime,
    dialect: Dialect = STRICT,
) -> AheadExchange:
    """The registrar's request for a voucher without a nonce; `device` as the site knows it."""
    issuer, serial = device
    request = VoucherRequest(serial_number=serial, created_on=now, idevid_issuer=bytes.fromhex(issuer))
    body = registrar.sign(request, media_type, now=now, dialect=dialect)
    call = Call("POST", f"{masa.path}/requestvoucher", media_type, {"accept": media_type}, body)
    own_keys = frozenset(chains.spki_sha256(one) for one in registrar.own_chain)
    return AheadExchange(device, masa, call, own_keys, dialect)
