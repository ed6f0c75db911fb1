"""Refusals on the wire: every error becomes an answer here, and its status comes from one table (RFC 9457).

A leaf takes the row of its reason in statuses.py, or that of its nearest ancestor that has one. Whatever is no Refusal
is our own fault: 500, without any detail. Fields of a refusal that become headers:
retry_after_seconds (202, 429, 503), allow (405), www_authenticate (401), close (true closes the connection after it);
bare (true) leaves the body out.
"""

from __future__ import annotations

import importlib
import json
import logging
import pkgutil
from collections.abc import Mapping
from math import ceil
from typing import Any

from appliance.web.statuses import SCIM_TYPES, STATUS
from est.errors import Refusal
from est.exchange import Reply

_log = logging.getLogger(__name__)
_RETRY_STATUSES = frozenset({202, 429, 503})
_DEFAULT_RETRY_SECONDS = 5
_BEARER = 'Bearer realm="appliance"'
# After this answer nothing more is exchanged: somebody may sit in the middle (RFC 8995, section 5.2).
_CLOSING = frozenset({"proximity-mismatch"})
# Fields that become headers, and names that the body uses itself.
_HIDDEN_FIELDS = frozenset(
    {"status", "type", "title", "detail", "reason", "request_id", "allow", "www_authenticate", "close", "bare"}
)


def status_of(error: Refusal | type[Refusal]) -> int | None:
    """The status of a refusal, found along its ancestry; None if no row covers it."""
    kind = error if isinstance(error, type) else type(error)
    for ancestor in kind.__mro__:
        status = STATUS.get(ancestor.__dict__.get("reason", ""))
        if status is not None:
            return status
    return None


def problem(error: BaseException, *, path: str, request_id: str) -> Reply:
    """The answer that an error means: a plain line under /.well-known/, SCIM's under /scim/, else problem+json."""
    if not isinstance(error, Refusal):
        return _write(500, "internal-error", "", {}, {}, path, request_id)
    status = status_of(error)
    if status is None:
        _log.error("event=refusal-without-status reason=%s request_id=%s", error.reason, request_id)
        return _write(500, "internal-error", "", {}, {}, path, request_id)
    if status >= 500 and status not in _RETRY_STATUSES and status not in (502, 504):
        return _write(status, error.reason, "", {}, {}, path, request_id)
    headers = _headers(status, error)
    if error.fields.get("bare"):
        return Reply(status, headers=headers)
    return _write(status, error.reason, error.detail, error.fields, headers, path, request_id)


def _headers(status: int, error: Refusal) -> dict[str, str]:
    headers: dict[str, str] = {}
    if status in _RETRY_STATUSES:
        seconds = error.fields.get("retry_after_seconds", _DEFAULT_RETRY_SECONDS)
        headers["retry-after"] = str(
            max(1, ceil(seconds)) if isinstance(seconds, int | float) else _DEFAULT_RETRY_SECONDS
        )
    if status == 405:
        allow = error.fields.get("allow", ())
        headers["allow"] = allow if isinstance(allow, str) else ", ".join(map(str, _listed(allow)))
    challenge = error.fields.get("www_authenticate", _BEARER if error.reason == "token-required" else None)
    if status == 401 and challenge is not None:
        headers["www-authenticate"] = str(challenge)
    if error.fields.get("close") or error.reason in _CLOSING:
        headers["connection"] = "close"
    return headers


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, tuple | list | set | frozenset) else [value]


def _write(
    status: int,
    reason: str,
    detail: str,
    fields: Mapping[str, object],
    headers: Mapping[str, str],
    path: str,
    request_id: str,
) -> Reply:
    detail = detail or reason.replace("-", " ")
    if path.startswith("/.well-known/"):
        line = f"{reason}: {one_line(detail)} (request {request_id})\n"
        return Reply(status, "text/plain; charset=utf-8", headers, line.encode())
    if path.startswith("/scim/"):
        return _write_scim(status, reason, detail, headers)
    public = {name: _plain(value) for name, value in fields.items() if name not in _HIDDEN_FIELDS}
    body = {
        "type": f"/problems/{reason}",
        "title": reason.replace("-", " "),
        "status": status,
        "detail": detail,
        "reason": reason,
        "request_id": request_id,
    } | public
    return Reply(status, "application/problem+json", headers, json.dumps(body, ensure_ascii=False).encode())


def _write_scim(status: int, reason: str, detail: str, headers: Mapping[str, str]) -> Reply:
    """What SCIM clients read instead (RFC 7644, section 3.12); our reason stands in front of the detail."""
    body = {
        "schemas": ["urn:ietf:params:scim:api:messages:2.0:Error"],
        "status": str(status),
        **({"scimType": SCIM_TYPES[reason]} if reason in SCIM_TYPES else {}),
        "detail": f"{reason}: {one_line(detail)}",
    }
    return Reply(status, "application/scim+json", headers, json.dumps(body, ensure_ascii=False).encode())


def one_line(text: str, limit: int = 500) -> str:
    """The text without line breaks and control characters, cut: safe for a log line or a text body."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])


def _plain(value: object) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [_plain(one) for one in value]
    return str(value)


def all_leaves() -> list[type[Refusal]]:
    """Every refusal of est, brski, radius and appliance that can be raised, after importing all their modules."""
    for package in ("est", "brski", "radius", "appliance"):
        root = importlib.import_module(package)
        for module in pkgutil.walk_packages(root.__path__, f"{package}."):
            if "__main__" not in module.name and ".migrations" not in module.name:
                importlib.import_module(module.name)
    found: dict[type[Refusal], None] = {}
    waiting = list(Refusal.__subclasses__())
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__dict__.get("reason") and kind.__module__.split(".")[0] in ("est", "brski", "radius", "appliance"):
            found[kind] = None
    return sorted(found, key=lambda kind: (kind.__module__, kind.__qualname__))
