"""OpenAPI 3.1 of the HTTP ports, generated from the route table."""

from __future__ import annotations

import re
from typing import Any

from appliance.web.routes import ROUTES, Route

_SECURITY: dict[str, list[dict[str, list[str]]]] = {
    "anyone": [],
    "certificate": [{"mutualTLS": []}],
    "token": [{"bearer": []}],
    "uid": [],
}
_PROBLEM = {
    "description": "Refused; the reason is stable.",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}


def document() -> dict[str, Any]:
    """The OpenAPI document; routes of Unix sockets are left out."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        if route.listener in ("admin", "agent"):
            continue
        path = route.path.replace("*}", "}")
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Campus network bootstrap appliance", "version": "1", "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "securitySchemes": {
                "mutualTLS": {"type": "mutualTLS"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
            "schemas": {
                "Problem": {
                    "type": "object",
                    "description": "RFC 9457 problem details.",
                    "required": ["type", "status", "detail", "reason"],
                    "properties": {
                        "type": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "reason": {"type": "string"},
                        "request_id": {"type": "string"},
                    },
                }
            },
        },
    }


def _operation(route: Route, path: str) -> dict[str, Any]:
    label = "label" in path
    operation: dict[str, Any] = {
        "operationId": f"{route.endpoint}{'.labelled' if label else ''}",
        "summary": f"{route.endpoint} on the {route.listener} port",
        "security": _SECURITY[route.who],
        "x-listener": route.listener,
        "x-max-body-bytes": route.max_body,
        "x-rate": route.rate,
        "responses": {"200": {"description": "Done."}, "default": _PROBLEM},
    }
    names = re.findall(r"\{(\w+)\}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if route.max_body:
        types = sorted(route.media_types) or ["application/octet-stream"]
        operation["requestBody"] = {"required": True, "content": {media_type: {} for media_type in types}}
    return operation
