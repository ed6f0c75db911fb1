"""Users and groups as an identity provider pushed them; a user's id is that of its owner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update

from appliance.store.schema import scim_groups, scim_members, scim_users
from appliance.store.transaction import Tx

_u, _g, _m = scim_users.c, scim_groups.c, scim_members.c
_ADD_USER = insert(scim_users)
_USER = select(scim_users).where(_u.id == bindparam("id"))
_BY_NAME = select(scim_users).where(_u.user_name_key == bindparam("key"))
_BY_EXTERNAL = select(scim_users).where(_u.external_id == bindparam("key"), _u.deleted_at.is_(None))
_USERS = (
    select(scim_users)
    .where(_u.deleted_at.is_(None))
    .order_by(_u.created_at, _u.id)
    .limit(bindparam("count"))
    .offset(bindparam("skip"))
)
_COUNT_USERS = select(func.count()).select_from(scim_users).where(_u.deleted_at.is_(None))
_CHANGE_USER = (
    update(scim_users)
    .where(_u.id == bindparam("key"))
    .values(
        user_name=bindparam("new_name"),
        user_name_key=bindparam("new_key"),
        external_id=bindparam("new_external"),
        body=bindparam("new_body"),
        version=_u.version + 1,
        updated_at=bindparam("at"),
        deleted_at=bindparam("gone_at"),
    )
)
_ADD_GROUP = insert(scim_groups)
_GROUP = select(scim_groups).where(_g.id == bindparam("id"))
_GROUPS = select(scim_groups).order_by(_g.created_at, _g.id).limit(bindparam("count")).offset(bindparam("skip"))
_COUNT_GROUPS = select(func.count()).select_from(scim_groups)
_CHANGE_GROUP = (
    update(scim_groups)
    .where(_g.id == bindparam("key"))
    .values(
        display_name=bindparam("new_name"),
        name_key=bindparam("new_key"),
        external_id=bindparam("new_external"),
        version=_g.version + 1,
        updated_at=bindparam("at"),
    )
)
_DROP_GROUP = delete(scim_groups).where(_g.id == bindparam("key"))
_DROP_MEMBERS = delete(scim_members).where(_m.group_id == bindparam("key"))
_DROP_MEMBER = delete(scim_members).where(_m.group_id == bindparam("key"), _m.user_id == bindparam("member"))
_LEAVE_ALL = delete(scim_members).where(_m.user_id == bindparam("key"))
_ADD_MEMBER = insert(scim_members)
_MEMBERS = select(_m.user_id).where(_m.group_id == bindparam("id")).order_by(_m.user_id)
_GROUPS_OF = (
    select(_g.id, _g.display_name)
    .join(scim_members, _m.group_id == _g.id)
    .where(_m.user_id == bindparam("id"))
    .order_by(_g.display_name, _g.id)
)


@dataclass(frozen=True, slots=True)
class UserRow:
    """One user; `body` holds the attributes that the provider wrote, `deleted_at` None while it is there."""

    id: str
    user_name: str
    external_id: str
    body: Mapping[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime
    deleted_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group."""

    id: str
    display_name: str
    external_id: str
    version: int
    created_at: datetime
    updated_at: datetime


def add_user(tx: Tx, id_: str, user_name: str, external_id: str, body: Mapping[str, Any]) -> None:
    """Insert; Conflict if a live user has the name."""
    tx.execute(
        _ADD_USER,
        {
            "id": id_,
            "user_name": user_name,
            "user_name_key": user_name.casefold(),
            "external_id": external_id or None,
            "body": dict(body),
            "version": 1,
            "created_at": tx.now,
            "updated_at": tx.now,
            "deleted_at": None,
        },
    )


def change_user(
    tx: Tx, id_: str, user_name: str, external_id: str, body: Mapping[str, Any], *, is_gone: bool = False
) -> None:
    """Write a user anew, its next version; Conflict if another live one has the name."""
    tx.execute(
        _CHANGE_USER,
        {
            "key": id_,
            "new_name": user_name,
            "new_key": None if is_gone else user_name.casefold(),
            "new_external": external_id or None,
            "new_body": dict(body),
            "at": tx.now,
            "gone_at": tx.now if is_gone else None,
        },
    )


def user(tx: Tx, id_: str) -> UserRow | None:
    """The user with this id, also one that was deleted."""
    return _user(tx.one(_USER, {"id": id_}))


def user_by_name(tx: Tx, user_name: str) -> UserRow | None:
    """The live user with this name, in whatever case."""
    return _user(tx.one(_BY_NAME, {"key": user_name.casefold()}))


def users_by_external(tx: Tx, external_id: str) -> list[UserRow]:
    """Live users with this externalId."""
    return [found for row in tx.all(_BY_EXTERNAL, {"key": external_id}) if (found := _user(row))]


def users(tx: Tx, *, skip: int, count: int) -> list[UserRow]:
    """Live users, oldest first."""
    return [found for row in tx.all(_USERS, {"skip": skip, "count": count}) if (found := _user(row))]


def count_users(tx: Tx) -> int:
    """How many live users there are."""
    return int(tx.scalar(_COUNT_USERS) or 0)


def add_group(tx: Tx, id_: str, name: str, external_id: str) -> None:
    """Insert; Conflict if a group has the name."""
    tx.execute(
        _ADD_GROUP,
        {
            "id": id_,
            "display_name": name,
            "name_key": name.casefold(),
            "external_id": external_id or None,
            "version": 1,
            "created_at": tx.now,
            "updated_at": tx.now,
        },
    )


def change_group(tx: Tx, id_: str, name: str, external_id: str) -> None:
    """Write a group anew, its next version; Conflict if another has the name."""
    values = {"key": id_, "new_name": name, "new_key": name.casefold(), "new_external": external_id or None}
    tx.execute(_CHANGE_GROUP, {**values, "at": tx.now})


def drop_group(tx: Tx, id_: str) -> None:
    """Forget a group and who was in it."""
    tx.execute(_DROP_MEMBERS, {"key": id_})
    tx.execute(_DROP_GROUP, {"key": id_})


def group(tx: Tx, id_: str) -> GroupRow | None:
    """The group with this id."""
    return _group(tx.one(_GROUP, {"id": id_}))


def groups(tx: Tx, *, skip: int, count: int) -> list[GroupRow]:
    """Groups, oldest first."""
    return [found for row in tx.all(_GROUPS, {"skip": skip, "count": count}) if (found := _group(row))]


def count_groups(tx: Tx) -> int:
    """How many groups there are."""
    return int(tx.scalar(_COUNT_GROUPS) or 0)


def members(tx: Tx, group_id: str) -> list[str]:
    """Ids of the users in a group."""
    return [row.user_id for row in tx.all(_MEMBERS, {"id": group_id})]


def put_members(tx: Tx, group_id: str, added: Iterable[str], gone: Iterable[str]) -> None:
    """Put users into a group and take others out."""
    for one in gone:
        tx.execute(_DROP_MEMBER, {"key": group_id, "member": one})
    tx.execute_many(_ADD_MEMBER, [{"group_id": group_id, "user_id": one} for one in added])


def leave_all(tx: Tx, user_id: str) -> None:
    """Take a user out of every group."""
    tx.execute(_LEAVE_ALL, {"key": user_id})


def groups_of(tx: Tx, user_id: str) -> list[tuple[str, str]]:
    """(id, name) of the groups that a user is in, by name."""
    return [(row.id, row.display_name) for row in tx.all(_GROUPS_OF, {"id": user_id})]


def _user(row: Any) -> UserRow | None:
    if row is None:
        return None
    return UserRow(
        row.id,
        row.user_name,
        row.external_id or "",
        row.body,
        row.version,
        row.created_at,
        row.updated_at,
        row.deleted_at,
    )


def _group(row: Any) -> GroupRow | None:
    if row is None:
        return None
    return GroupRow(row.id, row.display_name, row.external_id or "", row.version, row.created_at, row.updated_at)
