"""Refusals on the wire: the only place that chooses an HTTP status for an error (RFC 9457).

STATUS has one row per refusal reason, a table per package; a leaf without a row takes the one of its nearest ancestor
that has one. Whatever is no Refusal is our own fault: 500, without any detail. Fields of a refusal that become headers:
retry_after_seconds (202, 429, 503), allow (405), www_authenticate (401), close (true closes the connection after it).
"""

from __future__ import annotations

import importlib
import json
import logging
import pkgutil
from collections.abc import Mapping
from math import ceil
from types import MappingProxyType
from typing import Any

from est.errors import Refusal
from est.exchange import Reply

_log = logging.getLogger(__name__)

EST = {
    "body-malformed": 400,
    "body-too-large": 413,
    "media-type-not-accepted": 415,
    "est-operation-unknown": 404,
    "est-label-unknown": 404,
    "est-label-not-usable": 500,
    "method-not-allowed": 405,
    "csr-malformed": 400,
    "proof-of-possession-failed": 400,
    "key-not-accepted": 400,
    "requested-extension-not-granted": 400,
    "names-changed": 403,
    "tls-linking-failed": 400,
    "cms-malformed": 400,
    "cms-not-accepted": 400,
    "cms-signature-invalid": 400,
    "certificate-malformed": 400,
    "chain-not-trusted": 403,
    "chain-too-long": 400,
    "certificate-outside-validity": 403,
    "certificate-purpose-wrong": 403,
    "pinned-certificate-mismatch": 403,
    "shape-not-possible": 400,
    "certificate-not-as-shaped": 500,
    "est-reply-not-accepted": 502,
    "enrollment-refused": 502,
}

BRSKI = {
    "media-type-unsupported": 415,
    "voucher-format-not-acceptable": 406,
    "voucher-request-malformed": 400,
    "voucher-request-signature-invalid": 403,
    "voucher-malformed": 502,
    "voucher-signature-invalid": 502,
    "telemetry-malformed": 400,
    "audit-log-malformed": 502,
    "announcement-invalid": 500,
    # 403 where an administrator can put it right, 404 where the device's identity itself fails
    "client-certificate-missing": 401,
    "device-serial-missing": 404,
    "manufacturer-unknown": 403,
    "pledge-not-authorized": 403,
    "request-signer-foreign": 403,
    "serial-number-mismatch": 403,
    "proximity-mismatch": 401,
    "nonce-missing": 403,
    "nonce-invalid": 400,
    "masa-uri-invalid": 403,
    "masa-unknown": 403,
    "masa-not-allowed": 403,
    "registrar-certificate-unfit": 500,
    "masa-refused": 403,
    "masa-format-refused": 406,
    "masa-authentication-required": 502,
    "masa-answer-invalid": 502,
    "masa-unavailable": 503,
    "masa-unreachable": 503,
    "masa-timed-out": 504,
    "device-history-refused": 406,
    "registrar-not-authorized": 403,
    "registrar-unauthenticated": 401,
    "registrar-chain-broken": 403,
    "prior-request-invalid": 403,
    "nonce-mismatch": 403,
    "device-unknown": 404,
    "device-claimed": 403,
    "device-blocked": 403,
    "never-owner": 404,
    "pin-forbidden": 403,
    "voucher-pending": 503,
    "registrar-refused": 502,
    "voucher-for-other-device": 502,
    "voucher-for-other-request": 502,
    "voucher-nonceless": 502,
    "voucher-expired": 502,
    "voucher-not-yet-valid": 502,
    "assertion-not-acceptable": 502,
    "pin-missing": 502,
    "domain-not-pinned": 502,
    "out-of-order": 409,
}

BINDING = {
    "malformed": 400,
    "signature-invalid": 400,
    "algorithm-not-allowed": 400,
    "token-type-wrong": 400,
    "critical-header-unknown": 400,
    "key-id-mismatch": 400,
    "private-key-exposed": 400,
    "claim-missing": 400,
    "claim-malformed": 400,
    "claim-unknown": 400,
    "token-id-too-short": 400,
    "identifier-malformed": 400,
    "identifier-kind-wrong": 400,
    "origin-mismatch": 403,
    "request-expired": 400,
    "request-not-yet-valid": 400,
    "request-window-too-long": 400,
    "request-wrong-audience": 400,
    "request-for-other-agent": 400,
    "nonce-unknown": 400,
    "nonce-expired": 400,
    "nonce-spent": 409,
    "nonce-for-other-key": 400,
    "nonce-for-other-purpose": 400,
    "nonce-for-other-proxy": 400,
    "csr-missing": 400,
    "csr-not-expected": 400,
    "csr-mismatch": 400,
    "csr-key-mismatch": 400,
    "csr-names-mismatch": 400,
    "model-not-offered": 400,
    "key-reuse": 409,
    "agent-owner-mismatch": 409,
    "renewal-proof-missing": 400,
    "renewal-proof-not-expected": 400,
    "renewal-proof-mismatch": 400,
    "approval-missing": 400,
    "approval-denied": 403,
    "approval-spent": 409,
    "approval-expired": 403,
    "approval-not-yet-valid": 403,
    "approval-window-too-long": 403,
    "approval-wrong-audience": 403,
    "approval-wrong-owner": 403,
    "approval-for-other-agent": 403,
    "approval-for-other-key": 403,
    "approval-for-other-request": 403,
    "approval-for-other-model": 403,
    "approval-for-other-purpose": 403,
    "approval-for-other-proxy": 403,
    "approval-nonce-mismatch": 403,
    "approval-widened": 403,
    "self-approval": 403,
    "owner-mismatch": 403,
    "owner-unknown": 403,
    "owner-not-active": 403,
    "owner-key-unknown": 403,
    "owner-key-not-valid": 403,
    "owner-key-in-software": 403,
    "proxy-not-allowed-for-owner": 403,
    "statement-expired": 400,
    "statement-not-yet-valid": 400,
    "statement-window-too-long": 400,
    "statement-wrong-audience": 400,
    "statement-for-other-owner": 400,
    "evidence-missing": 400,
    "evidence-wrong-proxy": 403,
    "evidence-profile-unknown": 403,
    "evidence-too-old": 403,
    "evidence-expired": 403,
    "evidence-not-yet-valid": 403,
    "evidence-window-too-long": 403,
    "evidence-nonce-mismatch": 403,
    "evidence-for-other-request": 403,
    "evidence-for-other-key": 403,
    "evidence-for-other-owner": 403,
    "ear-profile-unknown": 403,
    "ear-wrong-verifier": 403,
    "ear-expired": 403,
    "ear-not-yet-valid": 403,
    "ear-window-too-long": 403,
    "ear-nonce-mismatch": 403,
    "ear-inconsistent": 403,
    "certificate-names-wrong": 403,
    "certificate-usage-wrong": 403,
    "dual-identity-missing": 403,
    "owner-ids-differ": 403,
    "approval-not-inside": 403,
    "approval-digest-mismatch": 403,
    "ear-digest-mismatch": 403,
    "issued-outside-approval": 403,
    "lifetime-not-approved": 403,
    "profile-not-approved": 403,
    "wit-expired": 400,
    "wit-not-yet-valid": 400,
    "wit-wrong-issuer": 400,
    "wit-has-audience": 400,
    "wit-key-without-algorithm": 400,
}

RADIUS = {
    "policy-malformed": 400,
    "policy-version-unknown": 400,
    "policy-key-unknown": 400,
    "policy-value-invalid": 400,
    "vlan-out-of-range": 400,
    "vlan-unknown": 400,
    "rule-duplicate": 400,
    "rule-unreachable": 400,
    "hook-malformed": 400,
    "raddb-value-invalid": 400,
    # these four end on the RADIUS side and never become an HTTP answer
    "eap-malformed": 400,
    "eap-out-of-turn": 400,
    "eap-too-large": 400,
    "radius-packet-invalid": 400,
}

REGISTRAR = {
    "enrollment-not-open": 403,
    "device-history-unjudged": 503,
    "pledge-clash": 403,
    "enrolled-already": 403,
    "enrollment-credentials-missing": 401,
    "enrollment-secret-invalid": 401,
    "proxy-revoked": 403,
    "ldevid-not-accepted": 403,
    "names-not-justified": 403,
    "key-in-use": 403,
    "manufacturer-unusable": 400,
}

IDENTITY = {
    "submitter-foreign": 403,
    "submitter-wrong-role": 403,
    "submitter-not-a-proxy": 403,
    "submitter-not-live": 403,
    "proxy-not-active": 403,
    "agent-unknown": 404,
    "agent-revoked": 403,
    "key-already-agent": 409,
    "reservations-full": 429,
    "evidence-contraindicated": 403,
    "single-identity-not-offered": 403,
    "approvers-not-distinct": 403,
    "request-replayed": 409,
    "lifetime-not-possible": 403,
    "request-abandoned": 409,
    "appraisal-policy-invalid": 500,
    "owner-text-refused": 400,
    "owner-file-refused": 400,
    "confirmation-needed": 409,
}

ACCESS: dict[str, int] = {}

PROXY: dict[str, int] = {
    "proxy-state-locked": 503,
    "proxy-state-damaged": 500,
    "bootstrap-not-configured": 500,
    "bootstrap-gave-up": 503,
    "enrolment-secret-unusable": 500,
    "peer-unreachable": 503,
    "tls-handshake-failed": 502,
    "server-untrusted": 502,
    "server-not-authorized": 502,
    "fingerprint-mismatch": 502,
    "peer-connection-closed": 502,
    "peer-silent": 504,
    "peer-reply-malformed": 502,
    "peer-reply-too-large": 502,
    "redirect-refused": 502,
    "call-not-allowed": 500,
    "caller-not-allowed": 403,
    "caller-gone": 403,
    "request-not-yours": 403,
    "agent-call-malformed": 400,
    "identity-server-away": 503,
}

OWNER = {
    "life-too-long": 403,
    "short-code-mismatch": 403,
    "card-not-reviewed": 400,
}

AGENT = {
    "agent-api-unreachable": 502,
    "agent-api-answer-unusable": 502,
    "issuance-refused": 502,
    "approval-not-given": 504,
    "credential-not-ours": 502,
    "supplicant-value-unusable": 502,
}

APPLIANCE = {
    "settings-invalid": 500,
    "operation-refused": 409,
    "appliance-unreachable": 503,
    "file-unreadable": 400,
    "not-found": 404,
    "conflict": 409,
    "not-permitted": 403,
    "request-malformed": 400,
    "certificate-required": 401,
    "token-required": 401,
    "rate-limited": 429,
    "queue-full": 429,
    "store-busy": 503,
    "store-unavailable": 503,
    "disk-full": 503,
    "store-missing": 503,
    "store-foreign": 503,
    "route-unknown": 404,
    "http-malformed": 400,
    "request-too-slow": 408,
    "answer-too-slow": 503,
    "expectation-refused": 417,
    "home-missing": 500,
    "home-locked": 503,
    "passphrase-wrong": 500,
    "key-file-missing": 500,
    "key-file-exposed": 500,
    "key-file-exists": 409,
    "key-malformed": 500,
    "key-mismatch": 500,
    "ca-unsuitable": 503,
    "ca-expired": 503,
    "certificate-unknown": 404,
    "issuance-failed": 500,
    "clock-went-back": 503,
    "audit-broken": 500,
}

STATUS: Mapping[str, int] = MappingProxyType(
    EST | BRSKI | BINDING | RADIUS | REGISTRAR | IDENTITY | ACCESS | PROXY | OWNER | AGENT | APPLIANCE
)
"""Reason to status, every package together."""

_RETRY_STATUSES = frozenset({202, 429, 503})
_DEFAULT_RETRY_SECONDS = 5
_BEARER = 'Bearer realm="appliance"'
# After this answer nothing more is exchanged: somebody may sit in the middle (RFC 8995, section 5.2).
_CLOSING = frozenset({"proximity-mismatch"})
# Fields that become headers, and names that the body uses itself.
_HIDDEN_FIELDS = frozenset(
    {"status", "type", "title", "detail", "reason", "request_id", "allow", "www_authenticate", "close"}
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
    """The answer that an error means: one plain line under /.well-known/, problem+json elsewhere."""
    if not isinstance(error, Refusal):
        return _write(500, "internal-error", "", {}, {}, path, request_id)
    status = status_of(error)
    if status is None:
        _log.error("event=refusal-without-status reason=%s request_id=%s", error.reason, request_id)
        return _write(500, "internal-error", "", {}, {}, path, request_id)
    if status >= 500 and status not in _RETRY_STATUSES and status not in (502, 504):
        return _write(status, error.reason, "", {}, {}, path, request_id)
    return _write(status, error.reason, error.detail, error.fields, _headers(status, error), path, request_id)


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
