"""The owner directory: who the owners are, in which department, with which approval keys.

Every change is an administrator's act, audited in the transaction that makes it, and told to the outbox so that the
next decision sees it (A-111). Owners are named by their `ref` or their identifier. Answers are JSON values, the same
for command line, console and API.
"""

from __future__ import annotations

import builtins
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

from appliance import audit, cascade
from appliance.access import owner_changes as changes
from appliance.access import owner_views as views
from appliance.access.owner_changes import OwnerOfOtherSource
from appliance.access.owner_keys import KeyStatements, check_gateway_url, read_row, row_of
from appliance.access.owner_rows import (
    Changed,
    ConfirmationNeeded,
    Difference,
    OwnerRow,
    check_department,
    check_row,
    compare,
    read_csv,
)
from appliance.audit import Actor, AuditEvent
from appliance.binding import dual_identity, possession
from appliance.binding.facts import Limits, OwnerRecord
from appliance.binding.webauthn import Passkey
from appliance.clock import Clock
from appliance.errors import Conflict, NotFound, RequestMalformed
from appliance.store import owner_clients, owner_gateways, owners, proxies
from appliance.store.owner_clients import ClientKey
from appliance.store.owner_gateways import OwnerGateway
from appliance.store.owners import Key, Owner
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est.keys import spki_sha256

Json = Mapping[str, Any]


class OwnerDirectory:
    """Owners, departments and keys, for administrators."""

    def __init__(
        self,
        *,
        origin: str,
        store: Store,
        clock: Clock,
        skew_seconds: int = 60,
        oid_arc: str = dual_identity.ARC,
        passkeys: Passkey | None = None,
    ) -> None:
        """`origin` is scheme and trust domain: the audience of key statements and the front of owner identifiers.

        `oid_arc` is the arc of the extensions in which a credential names the owner's key; `passkeys` says for which
        relying party and origin owners' passkeys are registered here, None: for the trust domain.
        """
        domain = origin.partition("://")[2]
        self._oid_arc = oid_arc
        self._origin = origin
        self._store = store
        self._clock = clock
        self._statements = KeyStatements(
            origin, passkeys or Passkey(domain, f"https://{domain}"), Limits(skew_seconds=skew_seconds)
        )

    async def import_csv(self, text: str, *, actor: Actor, confirm: bool = False, dry_run: bool = False) -> Json:
        """Take in a file with the columns ref,name,kind,department; answers what it adds, changes and leaves.

        Who is not in the file stays as he is; rows of revoked owners, and of owners that come from a directory, are
        passed over. Raises OwnerFileRefused naming the line, and ConfirmationNeeded if more than a tenth of the owners
        would change or are missing.
        """
        rows = read_csv(text)
        digest = hashlib.sha256(text.encode()).hexdigest()

        def look(tx: Tx) -> tuple[Difference, set[str], set[str]]:
            known = owners.every(tx)
            named = {row.ref for row in rows}
            revoked = {one.ref for one in known if one.state == owners.REVOKED}
            foreign = {one.ref for one in known if one.source != owners.LOCAL} - revoked
            live = {one.ref: _row_of(one) for one in known if one.ref not in revoked | foreign}
            found = compare(live, [row for row in rows if row.ref not in revoked | foreign])
            return found, revoked & named, foreign & named

        def write(tx: Tx) -> Json:
            found, revoked, foreign = look(tx)
            if found.is_large and not confirm:
                raise ConfirmationNeeded(
                    "more than a tenth of the owners would change or are missing in the file",
                    changed=len(found.changed),
                    vanished=len(found.vanished),
                )
            for row in found.added:
                self._add(tx, row, actor)
            for change in found.changed:
                _change(tx, change, actor)
            counts = {name: len(getattr(found, name)) for name in ("added", "changed", "unchanged", "vanished")}
            audit.append(tx, AuditEvent("owners-imported", actor, fields={**counts, "file_sha256": digest}))
            return views.difference(found, revoked, foreign, is_applied=True)

        if dry_run:
            return await self._store.read(lambda tx: views.difference(*look(tx), is_applied=False))
        return await self._store.write(write)

    async def add(self, ref: str, *, name: str, kind: str, department: str, actor: Actor) -> Json:
        """Add one owner; raises OwnerTextRefused, Conflict."""
        row = check_row(ref, name, kind, department)
        return await self._store.write(lambda tx: views.with_keys(tx, self._add(tx, row, actor)))

    async def list(self) -> list[Json]:
        """Every owner, by ref, with the number of keys that count."""

        def read(tx: Tx) -> list[Json]:
            keys = owners.all_keys(tx)
            return [
                {**views.brief(one), "keys": sum(key.state == owners.ACTIVE for key in keys.get(one.identifier, ()))}
                for one in owners.every(tx)
            ]

        return await self._store.read(read)

    async def records(self) -> builtins.list[OwnerRecord]:
        """Every owner with every key, also those that count no more, as a verifier wants them."""

        def read(tx: Tx) -> builtins.list[OwnerRecord]:
            keys = owners.all_keys(tx)
            return [
                OwnerRecord(
                    one.identifier, tuple(read_row(key) for key in keys.get(one.identifier, ())), one.state, one.kind
                )
                for one in owners.every(tx)
            ]

        return await self._store.read(read)

    async def show(self, name: str) -> Json:
        """One owner with keys and proxies, and everything that was issued in its name (A-113); raises NotFound."""
        return await self._store.read(lambda tx: views.whole(tx, _find(tx, name)))

    async def set_department(self, name: str, department: str, *, actor: Actor) -> Json:
        """Move an owner to another department; no certificate changes. Raises OwnerTextRefused, NotFound, Conflict."""
        canonical = check_department(department)

        def write(tx: Tx) -> Json:
            owner = _find(tx, name)
            before = _row_of(owner)
            changed = Changed(before, replace(before, department=canonical))
            if owner.source != owners.LOCAL:
                raise OwnerOfOtherSource(f"the owner comes from source {owner.source}")
            if changed.before != changed.after:
                owner = _change(tx, changed, actor)
            return views.brief(owner)

        return await self._store.write(write)

    async def add_key(self, name: str, statement: str, *, actor: Actor) -> Json:
        """Register an owner's approval key by its signed statement of possession (A-32).

        Raises NotFound, Conflict for a revoked owner, KeyReused for a key that anybody has or had (A-1), and what
        `possession.unseal` and `possession.check` raise.
        """
        return await self._take_key(name, statement, partial(_tell_added, actor=actor))

    async def rotate_key(self, name: str, statement: str, *, actor: Actor, overlap: timedelta = timedelta()) -> Json:
        """Register a new key and retire the older ones: what they signed stays good, what they sign later is not.

        With `overlap` the older ones may approve for that long still. Raises as add_key().
        """
        return await self._take_key(name, statement, partial(_retire_others, actor=actor, overlap=overlap))

    async def suspend_key(self, name: str, jkt: str, *, actor: Actor) -> Json:
        """Accept nothing new from one key until it is resumed; credentials stay. Raises NotFound, Conflict."""
        return await self._move_key(name, jkt, owners.ACTIVE, owners.SUSPENDED, "owner-key-suspended", actor)

    async def resume_key(self, name: str, jkt: str, *, actor: Actor) -> Json:
        """End the suspension of a key; raises NotFound, Conflict."""
        return await self._move_key(name, jkt, owners.SUSPENDED, owners.ACTIVE, "owner-key-resumed", actor)

    async def _move_key(self, name: str, jkt: str, was: str, state: str, event: str, actor: Actor) -> Json:
        def write(tx: Tx) -> Json:
            owner = _find(tx, name)
            key = owners.key(tx, jkt)
            if key is None or key.owner_id != owner.identifier:
                raise NotFound("this owner has no such key")
            if key.state != was:
                raise Conflict(f"the key is {key.state}")
            owners.move_key(tx, key, state)
            audit.append(tx, AuditEvent(event, actor, owner.identifier, fields={"jkt": jkt}))
            return views.with_keys(tx, owner)

        return await self._store.write(write, essential=True)

    async def revoke_key(self, name: str, jkt: str, *, actor: Actor) -> Json:
        """Revoke one key at once, with every live credential whose approval it signed.

        Raises NotFound, Conflict if it is revoked already.
        """

        def write(tx: Tx) -> Json:
            owner = _find(tx, name)
            key = owners.key(tx, jkt)
            if key is None or key.owner_id != owner.identifier:
                raise NotFound("this owner has no such key")
            owners.end_key(tx, key, state=owners.REVOKED, at=tx.now)
            count = cascade.revoke_approved_by(tx, owner, jkt, arc=self._oid_arc, actor=actor)
            fields = {"jkt": jkt, "credentials": count}
            audit.append(tx, AuditEvent("owner-key-revoked", actor, owner.identifier, fields=fields))
            return {**views.with_keys(tx, owner), "credentials_revoked": count}

        return await self._store.write(write, essential=True)

    async def add_client_key(self, name: str, statement: str, *, actor: Actor) -> Json:
        """Register the client key of an owner's tool by its signed statement of possession (A-99).

        Raises as add_key(); a key that approves can never be one that connects.
        """
        stated = possession.unseal(statement, typ=possession.CLIENT_TYP)

        def write(tx: Tx) -> Json:
            owner = self._statements.spend(tx, _find(tx, name), stated)
            key = ClientKey(
                jkt=stated.jkt,
                owner_id=owner.identifier,
                spki_sha256=spki_sha256(stated.key).hex(),
                state=owner_clients.ACTIVE,
                statement_sha256=hashlib.sha256(statement.encode("ascii")).hexdigest(),
                created_at=tx.now,
            )
            owner_clients.add(tx, key)
            fields = {"jkt": key.jkt, "statement_sha256": key.statement_sha256}
            audit.append(tx, AuditEvent("owner-client-key-added", actor, owner.identifier, fields=fields))
            return views.with_keys(tx, owner)

        return await self._store.write(write)

    async def revoke_client_key(self, name: str, jkt: str, *, actor: Actor) -> Json:
        """Revoke the client key of an owner's tool at once; credentials stay. Raises NotFound, Conflict."""

        def write(tx: Tx) -> Json:
            owner = _find(tx, name)
            key = owner_clients.get(tx, jkt)
            if key is None or key.owner_id != owner.identifier:
                raise NotFound("this owner has no such client key")
            owner_clients.end(tx, jkt)
            audit.append(tx, AuditEvent("owner-client-key-revoked", actor, owner.identifier, fields={"jkt": jkt}))
            return views.with_keys(tx, owner)

        return await self._store.write(write, essential=True)

    async def add_gateway(self, name: str, url: str, statement: str, *, actor: Actor) -> Json:
        """Register an owner's gateway: where proxies find it, and its server key by a signed statement (D-4, A-99).

        Raises RequestMalformed for an address that is none, and as add_key().
        """
        stated = possession.unseal(statement, typ=possession.GATEWAY_TYP)
        address = check_gateway_url(url)

        def write(tx: Tx) -> Json:
            owner = self._statements.spend(tx, _find(tx, name), stated)
            gateway = OwnerGateway(
                jkt=stated.jkt,
                owner_id=owner.identifier,
                url=address,
                spki_sha256=spki_sha256(stated.key).hex(),
                state=owner_gateways.ACTIVE,
                statement_sha256=hashlib.sha256(statement.encode("ascii")).hexdigest(),
                created_at=tx.now,
            )
            owner_gateways.add(tx, gateway)
            fields = {"jkt": gateway.jkt, "url": address, "statement_sha256": gateway.statement_sha256}
            audit.append(tx, AuditEvent("owner-gateway-added", actor, owner.identifier, fields=fields))
            return views.with_keys(tx, owner)

        return await self._store.write(write)

    async def revoke_gateway(self, name: str, jkt: str, *, actor: Actor) -> Json:
        """Name a gateway to no proxy any more; credentials stay. Raises NotFound, Conflict."""

        def write(tx: Tx) -> Json:
            owner = _find(tx, name)
            gateway = owner_gateways.get(tx, jkt)
            if gateway is None or gateway.owner_id != owner.identifier:
                raise NotFound("this owner has no such gateway")
            owner_gateways.end(tx, jkt)
            audit.append(tx, AuditEvent("owner-gateway-revoked", actor, owner.identifier, fields={"jkt": jkt}))
            return views.with_keys(tx, owner)

        return await self._store.write(write, essential=True)

    async def allow_proxy(self, name: str, proxy_id: str, *, actor: Actor) -> Json:
        """Name a proxy that may submit for an owner; from the first one on, only named ones may (A-96).

        Raises NotFound, Conflict if it is named already.
        """

        def write(tx: Tx) -> Json:
            owner = _find(tx, name)
            if proxies.by_identifier(tx, proxy_id) is None:
                raise NotFound("there is no such proxy")
            owners.allow_proxy(tx, owner.identifier, proxy_id)
            audit.append(tx, AuditEvent("owner-proxy-allowed", actor, owner.identifier, fields={"proxy": proxy_id}))
            return views.with_keys(tx, owner)

        return await self._store.write(write)

    async def suspend(self, name: str, *, actor: Actor) -> Json:
        """Deny everything in an owner's name until resumed; credentials stay. Raises NotFound, Conflict."""
        return await self._store.write(
            lambda tx: views.brief(changes.hold(tx, _find(tx, name), actor=actor)), essential=True
        )

    async def resume(self, name: str, *, actor: Actor) -> Json:
        """End a suspension; raises NotFound, Conflict, and OwnerHeldBySource if its source has disabled the owner."""
        return await self._store.write(
            lambda tx: views.brief(changes.release(tx, _find(tx, name), actor=actor)), essential=True
        )

    async def adopt(self, name: str, source: str, *, actor: Actor) -> Json:
        """Hand an owner over to another source, or have its own source find it anew by its ref.

        The source that has it next may be another person's who got the same name: this is an administrator's word that
        it is the same one. Raises NotFound, RequestMalformed, Conflict for a revoked owner.
        """
        if source not in (owners.LOCAL, owners.LDAP, owners.SCIM):
            raise RequestMalformed(f"a source is {owners.LOCAL}, {owners.LDAP} or {owners.SCIM}")

        def write(tx: Tx) -> Json:
            owner = _find(tx, name)
            said = owners.PRESENT if source == owners.LOCAL else owner.source_state
            after = changes.say(tx, owner, said, actor=actor, source=source, source_key="")
            fields = {"ref": owner.ref, "from": owner.source, "to": source}
            audit.append(tx, AuditEvent("owner-adopted", actor, owner.identifier, fields=fields))
            return views.brief(after)

        return await self._store.write(write)

    async def revoke(self, name: str, *, actor: Actor) -> Json:
        """Revoke an owner for good, with keys, agents and every credential in its name, in one transaction (A-110).

        Raises NotFound, Conflict if the owner is revoked already.
        """

        def write(tx: Tx) -> Json:
            owner = _find(tx, name)
            if owner.state == owners.REVOKED:
                raise Conflict("the owner is revoked already")
            count = cascade.revoke_owner(tx, owner, actor=actor)
            return {**views.brief(_find(tx, owner.identifier)), "credentials_revoked": count}

        return await self._store.write(write, essential=True)

    def _add(self, tx: Tx, row: OwnerRow, actor: Actor) -> Owner:
        departments = [row.department] if row.department else []
        return changes.mint(
            tx, self._origin, ref=row.ref, name=row.name, kind=row.kind, departments=departments, actor=actor
        )

    async def _take_key(self, name: str, text: str, settle: Callable[[Tx, Owner, Key], None]) -> Json:
        statement = possession.unseal(text)

        def write(tx: Tx) -> Json:
            owner = self._statements.spend(tx, _find(tx, name), statement)
            key = row_of(owner, statement, tx.now)
            owners.add_key(tx, key)
            settle(tx, owner, key)
            return views.with_keys(tx, owner)

        return await self._store.write(write)


def _tell_added(tx: Tx, owner: Owner, key: Key, *, actor: Actor) -> None:
    fields = {"jkt": key.jkt, "protection": key.protection, "statement_sha256": key.statement_sha256}
    audit.append(tx, AuditEvent("owner-key-added", actor, owner.identifier, fields=fields))


def _retire_others(tx: Tx, owner: Owner, key: Key, *, actor: Actor, overlap: timedelta) -> None:
    in_use = (owners.ACTIVE, owners.SUSPENDED)
    older = [one for one in owners.keys(tx, owner.identifier) if one.jkt != key.jkt and one.state in in_use]
    for one in older:
        state = one.state if overlap else owners.RETIRED
        ends = tx.now + overlap
        owners.end_key(tx, one, state=state, at=ends if one.not_after is None else min(ends, one.not_after))
    fields = {
        "jkt": key.jkt,
        "protection": key.protection,
        "statement_sha256": key.statement_sha256,
        "retired": [one.jkt for one in older],
        "overlap_seconds": int(overlap.total_seconds()),
    }
    audit.append(tx, AuditEvent("owner-key-rotated", actor, owner.identifier, fields=fields))


def _change(tx: Tx, change: Changed, actor: Actor) -> Owner:
    after = change.after
    return changes.alter(
        tx,
        _find(tx, after.ref),
        ref=after.ref,
        name=after.name,
        kind=after.kind,
        departments=[after.department] if after.department else [],
        actor=actor,
    )


def _find(tx: Tx, name: str) -> Owner:
    owner = owners.find(tx, name)
    if owner is None:
        raise NotFound(f"there is no owner {name[:120]!a}")
    return owner


def _row_of(owner: Owner) -> OwnerRow:
    return OwnerRow(owner.ref, owner.name, owner.kind, owner.department)
