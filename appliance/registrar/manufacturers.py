"""The site's list of manufacturers: whose IDevIDs are taken, which MASA is asked, what is trusted there (B-144, B-158).

IDevID anchors and MASA TLS anchors are separate, and the machine's trust store counts at a MASA only where an
administrator said so.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cryptography import x509
from cryptography.x509.oid import NameOID

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.clock import Clock
from appliance.errors import Conflict, NotFound
from appliance.registrar.errors import ManufacturerUnusable
from appliance.registrar.maker_options import Options, read_options
from appliance.registrar.masa_client import MasaDestination
from appliance.store import knocks, listed_devices
from appliance.store import manufacturers as table
from appliance.store.listed_devices import ListedDevice
from appliance.store.manufacturers import ManufacturerRow
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx
from brski.dialect import read_dialect
from brski.errors import ManufacturerUnknown
from brski.idevid import MasaAddress, read_masa_address
from brski.manufacturer import Manufacturer
from est.certificates import pem_certificates
from est.chains import TrustAnchors, spki_sha256
from est.errors import EstError, Refusal

log = logging.getLogger(__name__)

TOPIC = "manufacturer"
MAX_NAME = 120


@dataclass(frozen=True, slots=True)
class KnownManufacturer:
    """One entry, read: what brski needs, and what only the site needs.

    `listed_hosts` are the hosts that somebody wrote down literally.
    """

    id: str
    facts: Manufacturer
    options: Options
    listed_hosts: frozenset[str]
    masa_tls_anchors_pem: str

    def destination(self, masa: MasaAddress) -> MasaDestination:
        """Where calls for this manufacturer's devices go, what is trusted there and what we show."""
        trust = self.options.masa_trust
        return MasaDestination(
            base=f"https://{masa.authority}",
            tls_anchors_pem="" if trust == "machine" else self.masa_tls_anchors_pem,
            public_anchors=trust != "anchors",
            listed=self.listed_hosts,
            credentials=self.options.credentials,
            concurrency=self.options.masa_concurrency,
        )


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
        known = tuple(_readable(await self._store.read(table.every)))
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

    async def named(self, name: str) -> KnownManufacturer | None:
        """The entry of this name, None if there is none."""
        return next((one for one in await self.known() if one.facts.name == name), None)

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
        serials: Sequence[str] = (),
    ) -> Mapping[str, Any]:
        """Trust a manufacturer's IDevIDs; answers what `every` shows of it. `serials` are devices that are expected.

        Raises ManufacturerUnusable, MasaCredentialsUnusable, MasaUriInvalid, Conflict (the name, or one of its anchors,
        is there already).
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
        options.credentials.check()

        def write(tx: Tx) -> None:
            _check_disjoint(new, (read(other) for other in table.every(tx)))
            table.add(tx, row)
            for serial in dict.fromkeys(serials):
                listed_devices.put(tx, ListedDevice(row.id, serial, tx.now))
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
                        "serials": len(serials),
                        **_said(options),
                    },
                ),
            )

        await self._store.write(write)
        return as_json(row)

    async def change(
        self,
        name: str,
        *,
        actor: Actor,
        new_name: str = "",
        anchors_pem: str = "",
        masa_url: str | None = None,
        masa_tls_anchors_pem: str = "",
        options: Mapping[str, Any] | None = None,
    ) -> Mapping[str, Any]:
        """Change what is given and keep the rest; `options` has the members of Options that change.

        Raises NotFound, ManufacturerUnusable, MasaCredentialsUnusable, MasaUriInvalid, Conflict.
        """

        def changed(tx: Tx) -> tuple[ManufacturerRow, Options, Options]:
            row = _find(tx, name)
            before = read_options(row.options)
            after = read_options({**before.as_json(), **(options or {})})
            new = replace(
                row,
                name=(new_name or row.name)[:MAX_NAME],
                anchors_pem=anchors_pem or row.anchors_pem,
                masa_url=row.masa_url if masa_url is None else masa_url,
                masa_tls_anchors_pem=masa_tls_anchors_pem or row.masa_tls_anchors_pem,
                options=after.as_json(),
            )
            _check_disjoint(read(new), (read(other) for other in table.every(tx) if other.id != row.id))
            return new, before, after

        _, _, planned = await self._store.read(changed)
        planned.credentials.check()

        def write(tx: Tx) -> ManufacturerRow:
            row, before, after = changed(tx)
            table.save(tx, row)
            tx.emit(TOPIC, row.name, {"id": row.id})
            old, now = before.as_json(), after.as_json()
            fields: dict[str, Any] = {key: now[key] for key in now if now[key] != old[key]}
            if anchors_pem:
                fields["anchors"] = [spki_sha256(one).hex() for one in read_pem(anchors_pem)]
            if masa_tls_anchors_pem:
                fields["masa_tls_anchors"] = [spki_sha256(one).hex() for one in read_pem(masa_tls_anchors_pem)]
            if masa_url is not None:
                fields["masa"] = masa_url
            if row.name != name:
                fields["was"] = name
            audit.append(tx, AuditEvent("manufacturer-changed", actor, object=row.name, fields=fields))
            return row

        return as_json(await self._store.write(write))

    async def remove(self, name: str, *, actor: Actor) -> Mapping[str, Any]:
        """Trust a manufacturer no more; running bootstraps of its devices end with the next message."""

        def write(tx: Tx) -> ManufacturerRow:
            row = _find(tx, name)
            table.remove(tx, row.id)
            listed_devices.remove_all(tx, row.id)
            knocks.remove_of(tx, row.id)
            tx.emit(TOPIC, row.name, {"id": row.id})
            audit.append(tx, AuditEvent("manufacturer-removed", actor, object=row.name))
            return row

        return as_json(await self._store.write(write))

    async def one(self, name: str) -> Mapping[str, Any]:
        """One, for an administrator; raises NotFound."""

        def find(tx: Tx) -> Mapping[str, Any]:
            row = _find(tx, name)
            return {**as_json(row), "listed_devices": len(listed_devices.of(tx, row.id))}

        return await self._store.read(find)

    async def every(self) -> list[Mapping[str, Any]]:
        """All, for an administrator."""
        return [as_json(row) for row in await self._store.read(table.every)]

    def _changed(self, rows: list[OutboxRow]) -> None:
        if any(row.topic == TOPIC for row in rows):
            self._generation += 1
            self._known = None


def read(row: ManufacturerRow) -> KnownManufacturer:
    """The row with its certificates and addresses read; raises ManufacturerUnusable or MasaUriInvalid."""
    options = read_options(row.options)
    addresses = [read_masa_address(text) for text in (row.masa_url, *options.masas) if text]
    if row.masa_tls_anchors_pem:
        read_pem(row.masa_tls_anchors_pem)
    elif options.masa_trust != "machine":
        raise ManufacturerUnusable(
            f"nothing is trusted at the MASA of {row.name}: give --masa-anchors FILE, or say masa-trust=machine"
        )
    if options.masa_from == "configured" and not row.masa_url:
        raise ManufacturerUnusable(f"masa-from=configured needs the MASA of {row.name}: give --masa URL")
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
            ignores_expiry=options.ignore_expiry,
            serial_source=options.source,
            asks_configured_masa=options.masa_from == "configured",
            dialect=read_dialect(options.dialect),
        ),
        options=options,
        listed_hosts=frozenset([*(address.host for address in addresses), *options.masa_addresses]),
        masa_tls_anchors_pem=row.masa_tls_anchors_pem,
    )


def _readable(rows: Iterable[ManufacturerRow]) -> Iterator[KnownManufacturer]:
    """One row that cannot be used must not shut out the devices of the others."""
    for row in rows:
        try:
            yield read(row)
        except Refusal as refusal:
            log.error("manufacturer-unusable name=%r reason=%s detail=%r", row.name, refusal.reason, refusal.detail)


def read_pem(pem: str) -> Sequence[x509.Certificate]:
    """The certificates in PEM text, at least one; raises ManufacturerUnusable."""
    try:
        found = pem_certificates(pem.encode())
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
        "masa_anchors": [spki_sha256(one).hex() for one in read_pem(row.masa_tls_anchors_pem)]
        if row.masa_tls_anchors_pem
        else [],
        **read_options(row.options).as_json(),
        "created_at": row.created_at.isoformat(timespec="seconds"),
    }


def _find(tx: Tx, name: str) -> ManufacturerRow:
    row = table.by_name(tx, name)
    if row is None:
        raise NotFound(f"there is no manufacturer {name}", name=name)
    return row


def _said(options: Options) -> dict[str, Any]:
    """Options that are not the default."""
    return options.model_dump(mode="json", exclude_defaults=True)


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
