"""BRSKI (RFC 8995) and its vouchers (RFC 8366): pledge, registrar and MASA as values and pure steps.

The whole dialogue in memory, in both formats (`lab` makes what a manufacturer and a campus would have):

>>> from datetime import UTC, datetime
>>> from lab import Domain, Factory
>>> now = datetime(2026, 1, 1, tzinfo=UTC)
>>> factory, campus = Factory.create(now=now), Domain.create(now=now)
>>> device = factory.make_device("PX-1", masa="masa.example:9443", now=now)
>>> pledge = Pledge(device.signer, device.chain, factory.masa_anchors)
>>> registrar = Registrar(campus.signer, campus.certificate, campus.chain)
>>> masa = Masa(factory.masa_signer, factory.masa_chain, factory.device_anchors)
>>> maker = Manufacturer("Acme", factory.device_anchors, allowed_masas=frozenset({"masa.example:9443"}))
>>> for media_type in paths.VOUCHER_FORMATS.values():
...     sent = pledge.voucher_request(campus.certificate, nonce=bytes(range(16)), now=now, media_type=media_type)
...     exchange = registrar.consider(
...         sent, device.certificate, device.chain[1:], [maker], tls_certificate=campus.certificate, now=now
...     )
...     grant = masa.issue(exchange.call, factory, now=now)
...     granted = exchange.conclude(grant.reply, now)
...     accepted = pledge.accept_voucher(exchange.reply(granted), sent, campus.tls_chain, now=now)
...     print(exchange.call.media_type, accepted.serial_number, accepted.assertion.value)
application/voucher-cms+json PX-1 proximity
application/voucher-jws+json PX-1 proximity
>>> exchange.url, pledge.voucher_status(True).path
('https://masa.example:9443/.well-known/brski/requestvoucher', '/.well-known/brski/voucher_status')

Map: voucher, voucher_request (artefacts) over leaves (YANG as JSON) and sealed (signed forms; jws is one of them);
idevid, manufacturer (who asks), dialect (what is tolerated for whom); pledge, registrar, masa (the roles); telemetry,
audit_log (what follows); states, discovery, paths, errors.
"""

from __future__ import annotations

from brski import paths
from brski.audit_log import Appraisal, AuditLog, AuditPolicy, Concern, LogEntry, appraise
from brski.dialect import STRICT, Dialect, read_dialect, write_dialect
from brski.errors import (
    AnnouncementInvalid,
    AssertionNotAcceptable,
    AuditLogMalformed,
    BrskiError,
    ClientCertificateMissing,
    DeviceBlocked,
    DeviceClaimed,
    DeviceHistoryRefused,
    DeviceSerialMissing,
    DeviceUnknown,
    DialectUnknown,
    DomainNotPinned,
    FormatNotAcceptable,
    JwsMalformed,
    JwsNotAccepted,
    JwsSignatureInvalid,
    ManufacturerUnknown,
    MasaAnswerInvalid,
    MasaAuthenticationRequired,
    MasaFormatRefused,
    MasaNotAllowed,
    MasaRefused,
    MasaTimedOut,
    MasaUnavailable,
    MasaUnknown,
    MasaUnreachable,
    MasaUriInvalid,
    MediaTypeUnsupported,
    NeverOwner,
    NonceInvalid,
    NonceMismatch,
    NonceMissing,
    OutOfOrder,
    PinForbidden,
    PinMissing,
    PledgeNotAuthorized,
    PriorRequestInvalid,
    ProximityMismatch,
    RegistrarCertificateUnfit,
    RegistrarChainBroken,
    RegistrarNotAuthorized,
    RegistrarRefused,
    RegistrarUnauthenticated,
    RequestSignerForeign,
    SerialNumberMismatch,
    TelemetryMalformed,
    VoucherExpired,
    VoucherForOtherDevice,
    VoucherForOtherRequest,
    VoucherMalformed,
    VoucherNonceless,
    VoucherNotYetValid,
    VoucherPending,
    VoucherRequestMalformed,
    VoucherRequestSignatureInvalid,
    VoucherSignatureInvalid,
)
from brski.idevid import IDevID
from brski.leaves import Assertion
from brski.manufacturer import KnownPledge, Manufacturer, identify
from brski.masa import Device, Grant, Masa, MasaPolicy
from brski.pledge import Pledge, PledgePolicy
from brski.registrar import MasaExchange, Registrar, RegistrarPolicy
from brski.telemetry import EnrollStatus, VoucherStatus
from brski.voucher import Voucher
from brski.voucher_request import VoucherRequest

__all__ = [
    "STRICT",
    "AnnouncementInvalid",
    "Appraisal",
    "Assertion",
    "AssertionNotAcceptable",
    "AuditLog",
    "AuditLogMalformed",
    "AuditPolicy",
    "BrskiError",
    "ClientCertificateMissing",
    "Concern",
    "Device",
    "DeviceBlocked",
    "DeviceClaimed",
    "DeviceHistoryRefused",
    "DeviceSerialMissing",
    "DeviceUnknown",
    "Dialect",
    "DialectUnknown",
    "DomainNotPinned",
    "EnrollStatus",
    "FormatNotAcceptable",
    "Grant",
    "IDevID",
    "JwsMalformed",
    "JwsNotAccepted",
    "JwsSignatureInvalid",
    "KnownPledge",
    "LogEntry",
    "Manufacturer",
    "ManufacturerUnknown",
    "Masa",
    "MasaAnswerInvalid",
    "MasaAuthenticationRequired",
    "MasaExchange",
    "MasaFormatRefused",
    "MasaNotAllowed",
    "MasaPolicy",
    "MasaRefused",
    "MasaTimedOut",
    "MasaUnavailable",
    "MasaUnknown",
    "MasaUnreachable",
    "MasaUriInvalid",
    "MediaTypeUnsupported",
    "NeverOwner",
    "NonceInvalid",
    "NonceMismatch",
    "NonceMissing",
    "OutOfOrder",
    "PinForbidden",
    "PinMissing",
    "Pledge",
    "PledgeNotAuthorized",
    "PledgePolicy",
    "PriorRequestInvalid",
    "ProximityMismatch",
    "Registrar",
    "RegistrarCertificateUnfit",
    "RegistrarChainBroken",
    "RegistrarNotAuthorized",
    "RegistrarPolicy",
    "RegistrarRefused",
    "RegistrarUnauthenticated",
    "RequestSignerForeign",
    "SerialNumberMismatch",
    "TelemetryMalformed",
    "Voucher",
    "VoucherExpired",
    "VoucherForOtherDevice",
    "VoucherForOtherRequest",
    "VoucherMalformed",
    "VoucherNonceless",
    "VoucherNotYetValid",
    "VoucherPending",
    "VoucherRequest",
    "VoucherRequestMalformed",
    "VoucherRequestSignatureInvalid",
    "VoucherSignatureInvalid",
    "VoucherStatus",
    "appraise",
    "identify",
    "paths",
    "read_dialect",
    "write_dialect",
]
