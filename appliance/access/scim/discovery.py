"""What this server can do, as SCIM clients ask it (RFC 7644, section 4; RFC 7643, sections 5 to 7). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from appliance.access.scim.resources import ENTERPRISE, GROUP, USER

MAX_RESULTS: Final = 200
LIST: Final = "urn:ietf:params:scim:api:messages:2.0:ListResponse"


def provider_config(base: str) -> dict[str, Any]:
    """The ServiceProviderConfig resource."""
    return {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ServiceProviderConfig"],
        "patch": {"supported": True},
        "bulk": {"supported": False, "maxOperations": 0, "maxPayloadSize": 0},
        "filter": {"supported": True, "maxResults": MAX_RESULTS},
        "changePassword": {"supported": False},
        "sort": {"supported": False},
        "etag": {"supported": True},
        "authenticationSchemes": [
            {
                "type": "oauthbearertoken",
                "name": "Bearer token",
                "description": "A token per client, made by `appliance directory token new`.",
                "specUri": "https://www.rfc-editor.org/rfc/rfc6750",
                "primary": True,
            }
        ],
        "meta": {"resourceType": "ServiceProviderConfig", "location": f"{base}/ServiceProviderConfig"},
    }


def resource_types(base: str) -> list[dict[str, Any]]:
    """Users, with the enterprise extension, and groups."""
    return [
        _type(base, "User", "/Users", USER, [{"schema": ENTERPRISE, "required": False}]),
        _type(base, "Group", "/Groups", GROUP, []),
    ]


def _type(base: str, name: str, endpoint: str, schema: str, extensions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:ResourceType"],
        "id": name,
        "name": name,
        "endpoint": endpoint,
        "schema": schema,
        "schemaExtensions": list(extensions),
        "meta": {"resourceType": "ResourceType", "location": f"{base}/ResourceTypes/{name}"},
    }


def schemas(base: str) -> list[dict[str, Any]]:
    """The attributes that are kept; others of the standard schemas are taken and forgotten."""
    return [
        _schema(
            base,
            USER,
            "User",
            [
                _attribute("userName", is_required=True, uniqueness="server"),
                _attribute("displayName"),
                _attribute(
                    "name",
                    kind="complex",
                    parts=[_attribute("formatted"), _attribute("givenName"), _attribute("familyName")],
                ),
                _attribute("active", kind="boolean"),
                _attribute(
                    "groups",
                    kind="complex",
                    is_multi=True,
                    mutability="readOnly",
                    parts=[
                        _attribute("value", mutability="readOnly", is_exact=True),
                        _attribute("display", mutability="readOnly"),
                    ],
                ),
            ],
        ),
        _schema(
            base,
            GROUP,
            "Group",
            [
                _attribute("displayName", is_required=True, uniqueness="server"),
                _attribute(
                    "members",
                    kind="complex",
                    is_multi=True,
                    parts=[_attribute("value", mutability="immutable", is_exact=True)],
                ),
            ],
        ),
        _schema(base, ENTERPRISE, "EnterpriseUser", [_attribute("department")]),
    ]


def _schema(base: str, id_: str, name: str, attributes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "schemas": ["urn:ietf:params:scim:schemas:core:2.0:Schema"],
        "id": id_,
        "name": name,
        "attributes": list(attributes),
        "meta": {"resourceType": "Schema", "location": f"{base}/Schemas/{id_}"},
    }


def _attribute(
    name: str,
    *,
    kind: str = "string",
    is_multi: bool = False,
    is_required: bool = False,
    is_exact: bool = False,
    mutability: str = "readWrite",
    uniqueness: str = "none",
    parts: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    return {
        "name": name,
        "type": kind,
        "multiValued": is_multi,
        "required": is_required,
        "caseExact": is_exact,
        "mutability": mutability,
        "returned": "default",
        "uniqueness": uniqueness,
        **({"subAttributes": list(parts)} if parts else {}),
    }


def listed(resources: Sequence[Mapping[str, Any]], *, total: int | None = None, start: int = 1) -> dict[str, Any]:
    """A ListResponse (RFC 7644, section 3.4.2)."""
    return {
        "schemas": [LIST],
        "totalResults": len(resources) if total is None else total,
        "startIndex": start,
        "itemsPerPage": len(resources),
        "Resources": list(resources),
    }
