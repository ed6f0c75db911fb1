"""PATCH of users and groups (RFC 7644, section 3.5.2), also in the shapes that large identity providers send. Pure.

Besides the standard: `op` in any case; `active` as a text; a value without a path whose keys are paths themselves
(`name.givenName`, or an attribute behind its schema's URN); members to remove given as a value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from appliance.access.scim.errors import (
    ScimNotMutable,
    ScimPathInvalid,
    ScimSyntaxInvalid,
    ScimTargetMissing,
    ScimValueInvalid,
)
from appliance.access.scim.filters import Name, Path, passes, read_path
from appliance.access.scim.resources import (
    ENTERPRISE,
    FORGOTTEN,
    FORGOTTEN_ENTERPRISE,
    GROUP,
    KEPT,
    NAME_PARTS,
    USER,
    User,
    read_members,
    read_user,
    write_user,
)

PATCH_OP: Final = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
MAX_OPERATIONS: Final = 1000
_KEPT = {name.lower(): name for name in KEPT}
_PARTS = {name.lower(): name for name in NAME_PARTS}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation; `path` None: `value` is an object of attributes."""

    op: str
    path: Path | None
    value: Any = None


@dataclass(frozen=True, slots=True)
class GroupChange:
    """What a PATCH makes of a group; `members` are all that are left."""

    name: str
    external_id: str
    members: frozenset[str]


def read_patch(document: object) -> list[Operation]:
    """The operations of a PATCH body; raises ScimSyntaxInvalid, ScimPathInvalid."""
    if not isinstance(document, dict):
        raise ScimSyntaxInvalid("a PATCH is an object")
    found = {key.lower(): value for key, value in document.items()}
    operations = found.get("operations")
    if not isinstance(found.get("schemas"), list) or PATCH_OP not in found["schemas"]:
        raise ScimSyntaxInvalid(f"schemas must name {PATCH_OP}")
    if not isinstance(operations, list) or not 0 < len(operations) <= MAX_OPERATIONS:
        raise ScimSyntaxInvalid(f"Operations is a list of 1 to {MAX_OPERATIONS}")
    return [_operation(one) for one in operations]


def _operation(found: object) -> Operation:
    if not isinstance(found, dict):
        raise ScimSyntaxInvalid("an operation is an object")
    keys = {key.lower(): value for key, value in found.items()}
    op, path = keys.get("op"), keys.get("path")
    if not isinstance(op, str) or op.lower() not in ("add", "replace", "remove"):
        raise ScimSyntaxInvalid("op is add, replace or remove")
    if path is not None and not isinstance(path, str):
        raise ScimPathInvalid("a path is a text")
    if op.lower() == "remove" and not path:
        raise ScimTargetMissing("a remove wants a path")
    return Operation(op.lower(), read_path(path) if path else None, keys.get("value"))


def patch_user(user: User, operations: Iterable[Operation]) -> User:
    """The user after these operations; raises ScimError."""
    document = write_user(user)
    for operation in operations:
        for path, value in _targets(operation):
            _set_user(document, operation.op, path, value)
    return read_user(document)


def patch_group(
    name: str, external_id: str, members: frozenset[str], operations: Iterable[Operation], *, id_: str
) -> GroupChange:
    """The group after these operations; raises ScimError."""
    for operation in operations:
        for path, value in _targets(operation):
            attr = path.name.attr
            _check_urn(path.name, GROUP)
            if attr == "members":
                members = _members(members, operation.op, path, value)
            elif attr in ("displayname", "externalid"):
                text = "" if operation.op == "remove" or value is None else value
                if not isinstance(text, str):
                    raise ScimValueInvalid(f"{attr} is a text")
                name, external_id = (text, external_id) if attr == "displayname" else (name, text)
            elif attr == "id" and value != id_:
                raise ScimNotMutable("the id of a group never changes")
            elif attr not in ("id", "schemas", "meta"):
                raise ScimPathInvalid(f"a group has no attribute {attr[:60]!a}")
    return GroupChange(name, external_id, members)


def _targets(operation: Operation) -> Iterator[tuple[Path, Any]]:
    """The attributes that an operation sets: its path, or every key of its value."""
    if operation.path is not None:
        yield operation.path, operation.value
        return
    if not isinstance(operation.value, dict):
        raise ScimValueInvalid("without a path the value is an object of attributes")
    for key, value in operation.value.items():
        if key.lower() in (ENTERPRISE.lower(), USER.lower(), GROUP.lower()):
            if not isinstance(value, dict):
                raise ScimValueInvalid("a schema's attributes are an object")
            for name, inner in value.items():
                yield read_path(f"{key}:{name}"), inner
        else:
            yield read_path(key), value


def _set_user(document: dict[str, Any], op: str, path: Path, value: Any) -> None:
    name = path.name
    if name.urn == ENTERPRISE.lower() or (not name.urn and name.attr == "department"):
        if name.attr == "department" and not name.sub:
            _put(document.setdefault(ENTERPRISE, {}), "department", op, value)
        elif name.attr not in FORGOTTEN_ENTERPRISE:
            raise ScimPathInvalid(f"the enterprise extension has no attribute {name.attr[:60]!a}")
        return
    _check_urn(name, USER)
    if name.attr in FORGOTTEN:
        return
    known = _KEPT.get(name.attr)
    if known is None or path.inner is not None or (name.sub and known != "name"):
        raise ScimPathInvalid(f"a user has no attribute {name.attr[:60]!a} that this could mean")
    if known == "name":
        _set_name(document, name, op, value)
    elif op == "remove" and known in ("userName", "active"):
        raise ScimNotMutable(f"{known} can be replaced, not removed")
    else:
        _put(document, known, op, value)


def _set_name(document: dict[str, Any], name: Name, op: str, value: Any) -> None:
    parts = document.setdefault("name", {})
    if name.sub:
        if name.sub in _PARTS:
            _put(parts, _PARTS[name.sub], op, value)
        return  # middleName and honorifics are forgotten
    if op == "remove" or value is None:
        parts.clear()
        return
    if not isinstance(value, Mapping):
        raise ScimValueInvalid("name is an object")
    for key, part in value.items():
        if key.lower() in _PARTS:
            _put(parts, _PARTS[key.lower()], op, part)


def _put(place: dict[str, Any], name: str, op: str, value: Any) -> None:
    if op == "remove" or value is None:
        place.pop(name, None)
    else:
        place[name] = value


def _members(members: frozenset[str], op: str, path: Path, value: Any) -> frozenset[str]:
    if path.inner is not None:
        if op != "remove":
            raise ScimPathInvalid("members are added and removed, never changed")
        inner = path.inner
        return _without(members, lambda one: passes(inner, {"value": one}))
    if op == "remove":
        if value is None:
            return frozenset()
        gone = frozenset(read_members(value))
        return members - gone
    named = frozenset([] if value is None else read_members(value))
    return members | named if op == "add" else named


def _without(members: frozenset[str], is_gone: Callable[[str], bool]) -> frozenset[str]:
    return frozenset(one for one in members if not is_gone(one))


def _check_urn(name: Name, own: str) -> None:
    if name.urn and name.urn != own.lower():
        raise ScimPathInvalid("the path names a schema that is not known here")
