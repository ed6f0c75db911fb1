"""The site's list of manufacturers: whose IDevIDs are taken, which MASA is asked, what is trusted there (B-144, B-158).

IDevID anchors and MASA TLS anchors are separate. Where an administrator gives no TLS anchors, the manufacturer's own
certificates and the machine's trust store serve: the voucher's signature is the pledge's to check in any case.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.clock import Clock
from appliance.errors import Conflict, NotFound
from appliance.registrar.errors import ManufacturerUnusable
from appliance.registrar.masa_client import MasaDestination
from appliance.store import manufacturers as table
from appliance.store.manufacturers import ManufacturerRow
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx
from brski.errors import ManufacturerUnknown
from brski.idevid import MasaAddress, read_masa_address
from brski.manufacturer import Manufacturer
from est.chains import TrustAnchors, spki_sha256
from est.errors import EstError

TOPIC = "manufacturer"
MAX_NAME = 120


@dataclass(frozen=True, slots=True)
class KnownManufacturer:
    """One entry, read: what brski needs, and what only the site needs.

    `serials` are the devices admitted by list (admission = "listed"); `listed_hosts` are the hosts that somebody
    wrote down literally.
    """

    id: str
    facts: Manufacturer
    serials: frozenset[str]
    listed_hosts: frozenset[str]
    masa_tls_anchors_pem: str
    public_anchors: bool

    def destination(self, masa: MasaAddress) -> MasaDestination:
        """Where calls for this manufacturer's devices go, and what is trusted there."""
        return MasaDestination(
            base=f"https://{masa.authority}",
            tls_anchors_pem=self.masa_tls_anchors_pem,
            public_anchors=self.public_anchors,
            listed=self.listed_hosts,
        )


@dataclass(frozen=True, slots=True)
class Options:
    """What can be set beside the anchors.

    `ignore_expiry`: take IDevIDs outside their dates (RFC 8995, section 2.6.2). `serials`: devices admitted by list.
    `masas`: further MASA authorities, host:port, that an IDevID may name. `masa_addresses`: private addresses that the
    MASA's name may lead to.
    """

    ignore_expiry: bool = False
    serials: tuple[str, ...] = ()
    masas: tuple[str, ...] = ()
    masa_addresses: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "ignore_expiry": self.ignore_expiry,
            "serials": list(self.serials),
            "masas": list(self.masas),
            "masa_addresses": list(self.masa_addresses),
        }


class Manufacturers:
    """The list, kept in memory and read again after every change."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._known: tuple[KnownManufacturer, ...] | None = None
        self._generation = 0
        store.subscribe(self._changed)

    async def known(self) -> tuple[KnownManufacturer, ...]:
        """Every manufacturer, oldest first."""
        if self._known is not None:
            return self._known
        generation = self._generation
        known = tuple(read(row) for row in await self._store.read(table.every))
        if generation == self._generation:
            self._known = known
        return known

    async def facts(self) -> list[Manufacturer]:
        """What brski needs of every manufacturer."""
        return [one.facts for one in await self.known()]

    async def entry(self, facts: Manufacturer) -> KnownManufacturer:
        """The entry with these facts; raises ManufacturerUnknown when it was removed meanwhile."""
        for one in await self.known():
            if one.facts.name == facts.name:
                return one
        raise ManufacturerUnknown("the manufacturer was removed meanwhile", name=facts.name)

    async def by_id(self, identifier: str) -> KnownManufacturer:
        """The entry with this id; raises ManufacturerUnknown when it was removed."""
        for one in await self.known():
            if one.id == identifier:
                return one
        raise ManufacturerUnknown("the manufacturer was removed meanwhile")

    async def add(
        self,
        *,
        anchors_pem: str,
        actor: Actor,
        name: str = "",
        masa_url: str = "",
        masa_tls_anchors_pem: str = "",
        options: Options = Options(),
    ) -> Mapping[str, Any]:
        """Trust a manufacturer's IDevIDs; answers what `every` shows of it.

        Raises ManufacturerUnusable, MasaUriInvalid, Conflict (the name, or one of its anchors, is there already).
        """
        anchors = read_pem(anchors_pem)
        row = ManufacturerRow(
            id=str(uuid.uuid4()),
            name=(name or _name_of(anchors[0]))[:MAX_NAME],
            anchors_pem=anchors_pem,
            masa_url=masa_url,
            masa_tls_anchors_pem=masa_tls_anchors_pem,
            options=options.as_json(),
            created_at=self._clock.now(),
        )
        new = read(row)

        def write(tx: Tx) -> None:
            _check_disjoint(new, (read(other) for other in table.every(tx)))
            table.add(tx, row)
            tx.emit(TOPIC, row.name, {"id": row.id})
            audit.append(
                tx,
                AuditEvent(
                    "manufacturer-added",
                    actor,
                    object=row.name,
                    fields={
                        "anchors": [spki_sha256(one).hex() for one in anchors],
                        "masa": row.masa_url,
                        **options.as_json(),
                    },
                ),
            )

        await self._store.write(write)
        return as_json(row)

    async def remove(self, name: str, *, actor: Actor) -> Mapping[str, Any]:
        """Trust a manufacturer no more; running bootstraps of its devices end with the next message."""

        def write(tx: Tx) -> ManufacturerRow:
            row = table.by_name(tx, name)
            if row is None:
                raise NotFound(f"there is no manufacturer {name}", name=name)
            table.remove(tx, row.id)
            tx.emit(TOPIC, row.name, {"id": row.id})
            audit.append(tx, AuditEvent("manufacturer-removed", actor, object=row.name))
            return row

        return as_json(await self._store.write(write))

    async def every(self) -> list[Mapping[str, Any]]:
        """All, for an administrator."""
        return [as_json(row) for row in await self._store.read(table.every)]

    def _changed(self, rows: list[OutboxRow]) -> None:
        if any(row.topic == TOPIC for row in rows):
            self._generation += 1
            self._known = None


def read(row: ManufacturerRow) -> KnownManufacturer:
    """The row with its certificates and addresses read; raises ManufacturerUnusable or MasaUriInvalid."""
    options = row.options
    addresses = [read_masa_address(text) for text in (row.masa_url, *options.get("masas", ())) if text]
    if row.masa_tls_anchors_pem:
        read_pem(row.masa_tls_anchors_pem)
    try:
        anchors = TrustAnchors(read_pem(row.anchors_pem))
    except EstError as cause:
        raise ManufacturerUnusable(f"an anchor of {row.name} cannot be used: {cause.detail}") from cause
    return KnownManufacturer(
        id=row.id,
        facts=Manufacturer(
            name=row.name,
            anchors=anchors,
            masa=row.masa_url,
            allowed_masas=frozenset(address.authority for address in addresses),
            ignores_expiry=bool(options.get("ignore_expiry")),
        ),
        serials=frozenset(options.get("serials", ())),
        listed_hosts=frozenset([*(address.host for address in addresses), *options.get("masa_addresses", ())]),
        masa_tls_anchors_pem=row.masa_tls_anchors_pem or row.anchors_pem,
        public_anchors=not row.masa_tls_anchors_pem,
    )


def read_pem(pem: str) -> Sequence[x509.Certificate]:
    """The certificates in PEM text, at least one; raises ManufacturerUnusable."""
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except ValueError as cause:
        raise ManufacturerUnusable("the file holds no certificates in PEM form") from cause
    if not found:
        raise ManufacturerUnusable("the file holds no certificates in PEM form")
    return found


def as_json(row: ManufacturerRow) -> Mapping[str, Any]:
    """What an administrator sees of a manufacturer."""
    anchors = read_pem(row.anchors_pem)
    return {
        "name": row.name,
        "subject": anchors[0].subject.rfc4514_string(),
        "masa_url": row.masa_url,
        "not_after": min(one.not_valid_after_utc for one in anchors).isoformat(timespec="seconds"),
        "fingerprints": [spki_sha256(one).hex() for one in anchors],
        "own_masa_anchors": bool(row.masa_tls_anchors_pem),
        **row.options,
        "created_at": row.created_at.isoformat(timespec="seconds"),
    }


def _check_disjoint(new: KnownManufacturer, others: Iterable[KnownManufacturer]) -> None:
    """One anchor under two manufacturers would leave open whose rules hold for its devices."""
    keys = {spki_sha256(one) for one in new.facts.anchors}
    for other in others:
        if keys & {spki_sha256(one) for one in other.facts.anchors}:
            raise Conflict(f"{other.facts.name} has one of these anchors already", name=other.facts.name)


def _name_of(certificate: x509.Certificate) -> str:
    for kind in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME):
        for attribute in certificate.subject.get_attributes_for_oid(kind):
            if isinstance(attribute.value, str) and attribute.value.strip():
                return attribute.value.strip()
    raise ManufacturerUnusable("the certificate names nobody; give the manufacturer a name")
