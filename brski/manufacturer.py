"""What a registrar knows about a manufacturer: whose devices it takes and which MASA it asks (RFC 8995, sections 2.3.2,
2.8, 5.1 and 5.3)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from brski.dialect import STRICT, Dialect
from brski.errors import (
    ClientCertificateMissing,
    DeviceSerialMissing,
    ManufacturerUnknown,
    MasaNotAllowed,
    MasaUnknown,
    MasaUriInvalid,
)
from brski.idevid import IDevID, MasaAddress, SerialSource, read_idevid, read_masa_address
from est import chains
from est.errors import ChainNotTrusted, EstError


@dataclass(frozen=True, slots=True)
class Manufacturer:
    """One entry of the registrar's list.

    `anchors` end the IDevID chains. `masa` is the MASA of this manufacturer as configured ("" = none): it is asked when
    the IDevID names none, and it is on the list of allowed ones. `allowed_masas` are further authorities that an IDevID
    may name, exactly, as host:port. `ignores_expiry` takes IDevIDs outside their dates (RFC 8995, section 2.6.2).
    `serial_source` says where the serial number stands. `asks_configured_masa`: whatever an IDevID names, `masa` is
    asked. `dialect` is what is tolerated of this manufacturer's devices and of its MASA.
    """

    name: str
    anchors: chains.TrustAnchors
    masa: str = ""
    allowed_masas: frozenset[str] = frozenset()
    ignores_expiry: bool = False
    dialect: Dialect = STRICT
    serial_source: SerialSource = SerialSource.SUBJECT
    asks_configured_masa: bool = False

    def masa_of(self, idevid: IDevID) -> MasaAddress:
        """Where to ask for this device's voucher.

        What a device says is used only if this list has it, host and port: otherwise a pledge could steer the registrar
        to any host. Raises MasaUnknown, MasaNotAllowed, MasaUriInvalid.
        """
        configured = read_masa_address(self.masa) if self.masa else None
        if not idevid.masa_uri or self.asks_configured_masa:
            if configured is None:
                raise MasaUnknown(f"no MASA is known for devices of {self.name}", manufacturer=self.name)
            return configured
        named = read_masa_address(idevid.masa_uri)
        allowed = {read_masa_address(authority).authority for authority in self.allowed_masas}
        if configured is not None:
            allowed.add(configured.authority)
        if named.authority not in allowed:
            raise MasaNotAllowed(
                f"{named.authority} is not an allowed MASA of {self.name}",
                manufacturer=self.name,
                authority=named.authority,
            )
        return named


@dataclass(frozen=True, slots=True)
class KnownPledge:
    """A device whose IDevID chain was checked: who it is, who made it, its chain from IDevID to anchor."""

    idevid: IDevID
    manufacturer: Manufacturer
    path: tuple[x509.Certificate, ...]


def identify(
    certificate: x509.Certificate | None,
    chain: Sequence[x509.Certificate],
    manufacturers: Iterable[Manufacturer],
    *,
    now: datetime,
) -> KnownPledge:
    """The pledge behind a TLS client certificate (RFC 8995, section 5.1).

    `chain` is what the client sent beside it, in any order. Raises ClientCertificateMissing, ManufacturerUnknown,
    DeviceSerialMissing, MasaUriInvalid.
    """
    if certificate is None:
        raise ClientCertificateMissing("a pledge authenticates with its IDevID as TLS client certificate")
    refusal: EstError | None = None
    nearest = ""
    for manufacturer in manufacturers:
        try:
            path = chains.check(
                certificate,
                chain,
                manufacturer.anchors,
                at=now,
                policy=chains.IDEVID,
                ignore_expiry=manufacturer.ignores_expiry,
            )
        except EstError as cause:
            # the most telling refusal: a path that exists but does not hold beats "no path"
            if refusal is None or isinstance(refusal, ChainNotTrusted):
                refusal, nearest = cause, "" if isinstance(cause, ChainNotTrusted) else manufacturer.name
            continue
        try:
            idevid = read_idevid(certificate, manufacturer.serial_source)
        except (DeviceSerialMissing, MasaUriInvalid) as cause:
            raise type(cause)(cause.detail, **{**cause.fields, "manufacturer": manufacturer.name}) from cause
        return KnownPledge(idevid, manufacturer, path)
    raise ManufacturerUnknown(
        "the device certificate's chain is not one of a known manufacturer",
        because=refusal.reason if refusal else "",
        nearest=nearest,
    ) from refusal
