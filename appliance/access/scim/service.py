"""ScimService: what an identity provider pushes becomes owners, each change in one transaction with its audit entry.

A user is an owner of the source `scim`. `active` false, or a DELETE, suspends the owner; nothing here ever deletes one,
and a name that comes back belongs to the same owner only if the provider's own externalId says so, or an administrator
did (`directory adopt`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

from appliance import audit
from appliance.access import owner_changes as changes
from appliance.access.scim import resources
from appliance.access.scim.errors import (
    ScimNotUnique,
    ScimResourceUnknown,
    ScimValueInvalid,
    ScimVersionMismatch,
)
from appliance.access.scim.filters import Filter, equals, passes
from appliance.access.scim.patch import Operation, patch_group, patch_user
from appliance.access.scim.resources import User
from appliance.access.sources.ldap_entries import MAX_DEPARTMENTS
from appliance.audit import Actor, AuditEvent
from appliance.errors import Conflict
from appliance.store import owners, scim
from appliance.store.owners import Owner
from appliance.store.scim import GroupRow, UserRow
from appliance.store.store import Store
from appliance.store.transaction import Tx

Json = dict[str, Any]
DepartmentsFrom = Literal["attribute", "groups", "both"]
_SCAN = 1000
_DELETED = "deleted:"


class ScimService:
    """Users and groups; answers resources as JSON."""

    def __init__(self, store: Store, *, origin: str, departments_from: DepartmentsFrom, max_owners: int) -> None:
        self._store = store
        self._origin = origin
        self._departments_from = departments_from
        self._max_owners = max_owners

    # -- users

    async def create_user(self, document: Mapping[str, Any], *, actor: Actor) -> Json:
        """A new user and owner, or one that comes back; raises ScimError."""
        user = resources.read_user(document)

        def write(tx: Tx) -> Json:
            if scim.user_by_name(tx, user.user_name) is not None:
                raise ScimNotUnique("a user with this userName exists")
            _check_external(tx, user.external_id, "")
            if scim.count_users(tx) >= self._max_owners:
                raise ScimValueInvalid(f"there are {self._max_owners} users already (directory.max_owners)")
            is_active = user.active is not False
            owner = _returning(tx, user)
            if owner is None:
                owner = changes.mint(
                    tx,
                    self._origin,
                    ref=user.user_name,
                    name=user.shown_name,
                    kind="person",
                    departments=self._departments(tx, "", user),
                    actor=actor,
                    source=owners.SCIM,
                    source_key=user.external_id,
                    source_state=owners.PRESENT if is_active else owners.DISABLED,
                )
                scim.add_user(tx, owner.id, user.user_name, user.external_id, _body(user))
            else:
                if scim.user(tx, owner.id) is None:
                    scim.add_user(tx, owner.id, user.user_name, user.external_id, _body(user))
                else:
                    scim.change_user(tx, owner.id, user.user_name, user.external_id, _body(user))
                self._settle(tx, owner, replace(user, active=is_active), actor)
            return self._shown(tx, _known(scim.user(tx, owner.id)))

        return await self._store.write(write)

    async def user(self, id_: str) -> Json:
        """One user; raises ScimResourceUnknown."""
        return await self._store.read(lambda tx: self._shown(tx, _known(scim.user(tx, id_))))

    async def users(self, found: Filter | None, *, start: int, count: int) -> tuple[list[Json], int]:
        """(one page, how many there are in all)."""
        return await self._store.read(lambda tx: self._page_of_users(tx, found, start, count))

    async def replace_user(self, id_: str, document: Mapping[str, Any], *, actor: Actor, match: str) -> Json:
        """PUT: what is not said is empty, only `active` stays as it was; raises ScimError."""
        user = resources.read_user(document)

        def change(before: User) -> User:
            return replace(user, active=before.active) if user.active is None else user

        return await self._change_user(id_, change, actor, match)

    async def patch_user(self, id_: str, operations: list[Operation], *, actor: Actor, match: str) -> Json:
        """PATCH; raises ScimError."""
        return await self._change_user(id_, lambda before: patch_user(before, operations), actor, match)

    async def delete_user(self, id_: str, *, actor: Actor, match: str) -> None:
        """The user is gone for the provider; the owner is suspended and stays. Raises ScimResourceUnknown."""

        def write(tx: Tx) -> None:
            row = _known(scim.user(tx, id_))
            _check_version(row.version, match)
            scim.leave_all(tx, id_)
            scim.change_user(tx, id_, row.user_name, row.external_id, row.body, is_gone=True)
            audit.append(tx, AuditEvent("directory-user-removed", actor, id_, fields={"ref": row.user_name}))
            owner = owners.by_id(tx, id_)
            if owner is not None and _is_ours(owner):
                key = owner.source_key or f"{_DELETED}{uuid.uuid4()}"
                changes.say(tx, owner, owners.ABSENT, actor=actor, source_key=key)

        await self._store.write(write, essential=True)

    async def _change_user(self, id_: str, change: Callable[[User], User], actor: Actor, match: str) -> Json:
        def write(tx: Tx) -> Json:
            row = _known(scim.user(tx, id_))
            _check_version(row.version, match)
            before = _user(row, owners.by_id(tx, id_))
            after = change(before)
            if after == before:
                return self._shown(tx, row)
            _check_external(tx, after.external_id, id_)
            try:
                scim.change_user(tx, id_, after.user_name, after.external_id, _body(after))
            except Conflict as cause:
                raise ScimNotUnique("a user with this userName exists") from cause
            owner = owners.by_id(tx, id_)
            if owner is not None:
                self._settle(tx, owner, after, actor)
            return self._shown(tx, _known(scim.user(tx, id_)))

        return await self._store.write(write, essential=True)

    def _settle(self, tx: Tx, owner: Owner, user: User, actor: Actor) -> None:
        """The owner as the user now is; a revoked one, or one that was handed to another source, stays as it is."""
        if not _is_ours(owner):
            return
        if any(one.id != owner.id for one in owners.by_ref_in_any_case(tx, user.user_name)):
            raise ScimNotUnique("an owner with this name exists")
        try:
            after = changes.alter(
                tx,
                owner,
                ref=user.user_name,
                name=user.shown_name,
                kind=owner.kind,
                departments=self._departments(tx, owner.id, user),
                actor=actor,
            )
        except Conflict as cause:
            raise ScimNotUnique("an owner with this name exists") from cause
        said = owners.DISABLED if user.active is False else owners.PRESENT
        more = {} if user.external_id == owner.source_key else {"source_key": user.external_id}
        changes.say(tx, after, said, actor=actor, **more)

    def _departments(self, tx: Tx, id_: str, user: User) -> list[str]:
        found = [user.department] if user.department and self._departments_from != "groups" else []
        if self._departments_from != "attribute" and id_:
            found += [name for _, name in scim.groups_of(tx, id_)]
        return list(dict.fromkeys(found))[:MAX_DEPARTMENTS]

    def _shown(self, tx: Tx, row: UserRow) -> Json:
        user = _user(row, owners.by_id(tx, row.id))
        document = resources.write_user(replace(user, active=user.active is not False))
        named = [resources.USER, *([resources.ENTERPRISE] if resources.ENTERPRISE in document else [])]
        listed = [{"value": id_, "display": name, "type": "direct"} for id_, name in scim.groups_of(tx, row.id)]
        return {
            "schemas": named,
            "id": row.id,
            **document,
            **({"groups": listed} if listed else {}),
            "meta": _meta("User", row),
        }

    def _page_of_users(self, tx: Tx, found: Filter | None, start: int, count: int) -> tuple[list[Json], int]:
        if found is None:
            rows = scim.users(tx, skip=start - 1, count=count) if count else []
            return [self._shown(tx, row) for row in rows], scim.count_users(tx)
        passing = [one for row in _candidates(tx, found) if passes(found, one := self._shown(tx, row))]
        return passing[start - 1 : start - 1 + count], len(passing)

    # -- groups

    async def create_group(self, document: Mapping[str, Any], *, actor: Actor) -> Json:
        """A new group; raises ScimError."""
        name, external_id, members = resources.read_group(document)
        id_ = str(uuid.uuid4())

        def write(tx: Tx) -> Json:
            try:
                scim.add_group(tx, id_, name, external_id)
            except Conflict as cause:
                raise ScimNotUnique("a group with this displayName exists") from cause
            self._put_members(tx, id_, frozenset(), frozenset(members or ()), actor)
            _tell_group(tx, actor, id_, {"displayName": name, "made": True, "added": len(members or ())})
            return _group(tx, _known_group(scim.group(tx, id_)))

        return await self._store.write(write)

    async def group(self, id_: str, *, with_members: bool = True) -> Json:
        """One group; raises ScimResourceUnknown."""
        return await self._store.read(
            lambda tx: _group(tx, _known_group(scim.group(tx, id_)), with_members=with_members)
        )

    async def groups(
        self, found: Filter | None, *, start: int, count: int, with_members: bool = True
    ) -> tuple[list[Json], int]:
        """(one page, how many there are in all)."""

        def read(tx: Tx) -> tuple[list[Json], int]:
            if found is None:
                rows = scim.groups(tx, skip=start - 1, count=count) if count else []
                return [_group(tx, row, with_members=with_members) for row in rows], scim.count_groups(tx)
            every = scim.groups(tx, skip=0, count=self._max_owners)
            passing = [row for row in every if passes(found, _group(tx, row))]
            page = passing[start - 1 : start - 1 + count]
            return [_group(tx, row, with_members=with_members) for row in page], len(passing)

        return await self._store.read(read)

    async def replace_group(self, id_: str, document: Mapping[str, Any], *, actor: Actor, match: str) -> Json:
        """PUT; raises ScimError."""
        name, external_id, members = resources.read_group(document)
        return await self._change_group(
            id_, lambda row, before: (name, external_id, frozenset(members or ())), actor, match
        )

    async def patch_group(self, id_: str, operations: list[Operation], *, actor: Actor, match: str) -> Json:
        """PATCH; raises ScimError."""

        def change(row: GroupRow, before: frozenset[str]) -> tuple[str, str, frozenset[str]]:
            after = patch_group(row.display_name, row.external_id, before, operations, id_=row.id)
            name, external_id, _ = resources.read_group(
                {"displayName": after.name, "externalId": after.external_id or None}
            )
            return name, external_id, after.members

        return await self._change_group(id_, change, actor, match)

    async def delete_group(self, id_: str, *, actor: Actor, match: str) -> None:
        """The group is gone, and with it its part in departments. Raises ScimResourceUnknown."""

        def write(tx: Tx) -> None:
            row = _known_group(scim.group(tx, id_))
            _check_version(row.version, match)
            before = scim.members(tx, id_)
            scim.drop_group(tx, id_)
            self._resettle(tx, before, actor)
            _tell_group(tx, actor, id_, {"displayName": row.display_name, "deleted": True, "gone": len(before)})

        await self._store.write(write, essential=True)

    async def _change_group(
        self,
        id_: str,
        change: Callable[[GroupRow, frozenset[str]], tuple[str, str, frozenset[str]]],
        actor: Actor,
        match: str,
    ) -> Json:
        def write(tx: Tx) -> Json:
            row = _known_group(scim.group(tx, id_))
            _check_version(row.version, match)
            before = frozenset(scim.members(tx, id_))
            name, external_id, after = change(row, before)
            if (name, external_id, after) == (row.display_name, row.external_id, before):
                return _group(tx, row)
            try:
                scim.change_group(tx, id_, name, external_id)
            except Conflict as cause:
                raise ScimNotUnique("a group with this displayName exists") from cause
            self._put_members(tx, id_, before, after, actor)
            if name != row.display_name:
                self._resettle(tx, after, actor)
            _tell_group(
                tx, actor, id_, {"displayName": name, "added": len(after - before), "gone": len(before - after)}
            )
            return _group(tx, _known_group(scim.group(tx, id_)))

        return await self._store.write(write, essential=True)

    def _put_members(self, tx: Tx, id_: str, before: frozenset[str], after: frozenset[str], actor: Actor) -> None:
        added, gone = sorted(after - before), sorted(before - after)
        for one in added:
            row = scim.user(tx, one)
            if row is None or row.deleted_at is not None:
                raise ScimValueInvalid(f"there is no user {one[:64]!a}")
        scim.put_members(tx, id_, added, gone)
        self._resettle(tx, [*added, *gone], actor)

    def _resettle(self, tx: Tx, ids: Iterable[str], actor: Actor) -> None:
        """Groups changed: so do departments, where they are made of groups."""
        if self._departments_from == "attribute":
            return
        for id_ in ids:
            row, owner = scim.user(tx, id_), owners.by_id(tx, id_)
            if row is not None and row.deleted_at is None and owner is not None:
                self._settle(tx, owner, _user(row, owner), actor)


def _candidates(tx: Tx, found: Filter) -> Iterable[UserRow]:
    """Users that may pass: by an index where the filter names one user, else all, page by page."""
    exact = equals(found, "username", "externalid", "id")
    if exact is not None:
        attribute, text = exact
        if attribute == "externalid":
            return scim.users_by_external(tx, text)
        row = scim.user_by_name(tx, text) if attribute == "username" else scim.user(tx, text)
        return [row] if row is not None and row.deleted_at is None else []
    return _all_users(tx)


def _all_users(tx: Tx) -> Iterable[UserRow]:
    skip = 0
    while rows := scim.users(tx, skip=skip, count=_SCAN):
        yield from rows
        skip += len(rows)


def _returning(tx: Tx, user: User) -> Owner | None:
    """The owner that a new user is, if it was here before; raises ScimNotUnique if that is not certain."""
    found = owners.by_ref_in_any_case(tx, user.user_name)
    if not found:
        return None
    owner = next((one for one in found if one.ref == user.user_name), found[0])
    if owner.source != owners.SCIM:
        raise ScimNotUnique("an owner of another source has this name; an administrator may hand it over")
    if owner.state == owners.REVOKED:
        raise ScimNotUnique("an owner with this name was revoked, for good")
    if owner.source_key and owner.source_key != user.external_id:
        raise ScimNotUnique("this name belonged to another user; an administrator may say that both are one")
    return owner


def _is_ours(owner: Owner) -> bool:
    return owner.source == owners.SCIM and owner.state != owners.REVOKED


def _check_external(tx: Tx, external_id: str, id_: str) -> None:
    if external_id and any(one.id != id_ for one in scim.users_by_external(tx, external_id)):
        raise ScimNotUnique("a user with this externalId exists")


def _check_version(version: int, match: str) -> None:
    """If-Match (RFC 7644, section 3.14); empty: not asked for."""
    wanted = [one.strip().removeprefix("W/").strip('"') for one in match.split(",")]
    if match and "*" not in wanted and str(version) not in wanted:
        raise ScimVersionMismatch("the resource has another version")


def _body(user: User) -> Json:
    return resources.write_user(replace(user, active=None))


def _user(row: UserRow, owner: Owner | None) -> User:
    """What the provider wrote, with what its owner is now."""
    is_active = owner is not None and owner.source_state == owners.PRESENT and owner.state != owners.REVOKED
    return replace(resources.read_user(row.body), active=is_active)


def _known(row: UserRow | None) -> UserRow:
    if row is None or row.deleted_at is not None:
        raise ScimResourceUnknown("there is no such user")
    return row


def _known_group(row: GroupRow | None) -> GroupRow:
    if row is None:
        raise ScimResourceUnknown("there is no such group")
    return row


def _group(tx: Tx, row: GroupRow, *, with_members: bool = True) -> Json:
    members = [{"value": one, "type": "User"} for one in scim.members(tx, row.id)] if with_members else []
    return {
        "schemas": [resources.GROUP],
        "id": row.id,
        "displayName": row.display_name,
        **({"externalId": row.external_id} if row.external_id else {}),
        **({"members": members} if members else {}),
        "meta": _meta("Group", row),
    }


def _meta(kind: str, row: UserRow | GroupRow) -> Json:
    return {
        "resourceType": kind,
        "created": row.created_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "lastModified": row.updated_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "version": f'W/"{row.version}"',
    }


def _tell_group(tx: Tx, actor: Actor, id_: str, fields: Json) -> None:
    audit.append(tx, AuditEvent("directory-group-changed", actor, id_, fields=fields))
