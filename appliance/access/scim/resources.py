"""Users and groups of SCIM as values, and as JSON (RFC 7643, sections 4.1 to 4.3). Pure.

What is kept is what owners are made of: names, activity, department. Other attributes of the standard schemas are taken
without a word and forgotten, passwords among them; what no schema knows is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from appliance.access.owner_rows import MAX_NAME_CHARS, OwnerTextRefused, check_department, check_name, check_ref
from appliance.access.scim.errors import ScimSyntaxInvalid, ScimValueInvalid

USER: Final = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP: Final = "urn:ietf:params:scim:schemas:core:2.0:Group"
ENTERPRISE: Final = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
KEPT: Final = ("userName", "externalId", "displayName", "name", "active")
NAME_PARTS: Final = ("formatted", "givenName", "familyName")
# fmt: off
FORGOTTEN: Final = frozenset({
    "nickname", "profileurl", "title", "usertype", "preferredlanguage", "locale", "timezone", "password", "emails",
    "phonenumbers", "ims", "photos", "addresses", "groups", "entitlements", "roles", "x509certificates",
    "schemas", "meta", "id",
})
FORGOTTEN_ENTERPRISE: Final = frozenset({"employeenumber", "costcenter", "organization", "division", "manager"})
# fmt: on
_MAX_TEXT = 256


@dataclass(frozen=True, slots=True)
class User:
    """One user as the provider wrote it; `active` None: not said."""

    user_name: str
    external_id: str = ""
    display_name: str = ""
    formatted: str = ""
    given_name: str = ""
    family_name: str = ""
    department: str = ""
    active: bool | None = None

    @property
    def shown_name(self) -> str:
        """The name for people."""
        both = f"{self.given_name} {self.family_name}".strip()[:MAX_NAME_CHARS].rstrip()
        return self.display_name or self.formatted or both or self.user_name


def read_user(document: Mapping[str, Any]) -> User:
    """A user resource as it was sent, by POST, PUT, or after a PATCH; raises ScimValueInvalid, ScimSyntaxInvalid."""
    found = {key.lower(): value for key, value in document.items()}
    parts = found.get("name") or {}
    enterprise = found.get(ENTERPRISE.lower()) or {}
    if not isinstance(parts, Mapping) or not isinstance(enterprise, Mapping):
        raise ScimSyntaxInvalid("name and the enterprise extension are objects")
    named = {key.lower(): value for key, value in parts.items()}
    more = {key.lower(): value for key, value in enterprise.items()}
    user_name = _text(found, "userName", check_ref)
    if not user_name:
        raise ScimValueInvalid("userName is missing")
    return User(
        user_name=user_name,
        external_id=_text(found, "externalId", _plain),
        display_name=_text(found, "displayName", check_name),
        formatted=_text(named, "formatted", check_name),
        given_name=_text(named, "givenName", check_name),
        family_name=_text(named, "familyName", check_name),
        department=_text(more, "department", check_department),
        active=read_active(found["active"]) if found.get("active") is not None else None,
    )


def read_active(value: object) -> bool:
    """A boolean, also as the text that one large provider sends; raises ScimValueInvalid."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ScimValueInvalid("active is true or false")


def read_group(document: Mapping[str, Any]) -> tuple[str, str, list[str] | None]:
    """(displayName, externalId, members) of a group resource; members None: not said."""
    found = {key.lower(): value for key, value in document.items()}
    name = _text(found, "displayName", check_department)
    if not name:
        raise ScimValueInvalid("displayName is missing")
    members = found.get("members")
    return name, _text(found, "externalId", _plain), None if members is None else read_members(members)


def read_members(value: object) -> list[str]:
    """Ids in a list of members, or of one; raises ScimValueInvalid."""
    listed = value if isinstance(value, list) else [value]
    found: list[str] = []
    for one in listed:
        id_ = (
            next((held for key, held in one.items() if key.lower() == "value"), None) if isinstance(one, dict) else one
        )
        if not isinstance(id_, str) or not id_ or len(id_) > _MAX_TEXT:
            raise ScimValueInvalid("a member is an object with the id of a user as its value")
        found.append(id_)
    return list(dict.fromkeys(found))


def write_user(user: User) -> dict[str, Any]:
    """The attributes that a provider may write, as JSON; what is empty is left out."""
    parts = {"formatted": user.formatted, "givenName": user.given_name, "familyName": user.family_name}
    document: dict[str, Any] = {"userName": user.user_name}
    for name, value in (("externalId", user.external_id), ("displayName", user.display_name)):
        if value:
            document[name] = value
    if any(parts.values()):
        document["name"] = {name: value for name, value in parts.items() if value}
    if user.active is not None:
        document["active"] = user.active
    if user.department:
        document[ENTERPRISE] = {"department": user.department}
    return document


def _text(found: Mapping[str, Any], name: str, check: Any) -> str:
    value = found.get(name.lower())
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        raise ScimValueInvalid(f"{name} is a text")
    try:
        return str(check(value))
    except OwnerTextRefused as refused:
        raise ScimValueInvalid(f"{name}: {refused.detail}") from refused


def _plain(value: str) -> str:
    if len(value) > _MAX_TEXT or not value.isprintable():
        raise OwnerTextRefused(f"wants at most {_MAX_TEXT} printable characters")
    return value
