"""The route table: every path of every port, who may call it, what it takes, how long and how often.

A row names its endpoint; `web.app.build_app` joins the rows of one listener with the endpoint functions of the services
and refuses to start while one is missing. "none" and "anyone" are written out: nothing is unlimited by omission.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from appliance.web.peer import Peer
from est.exchange import Call, Reply

Handler = Callable[[Call, Peer, Mapping[str, str]], Awaitable[Reply] | Reply]
"""An endpoint: the call, who called, the path's parameters; raises Refusal or answers."""

ListenerName = Literal["device", "decision", "pki", "console", "admin", "agent", "gateway"]
Who = Literal["anyone", "certificate", "token", "uid"]
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Rate = Literal["none", "address", "identity"]

KiB = 1024


@dataclass(frozen=True, slots=True)
class Route:
    """One row.

    `who`: anyone; certificate = some client certificate, judged by the service; token = a bearer token, judged by the
    service; uid = whoever may open the Unix socket. `media_types`: accepted Content-Types, empty = not looked at.
    `max_body` in bytes, 0 = none allowed. `rate`: none, or a bucket per address while the certificate is not one of
    ours and per identity once it is ("address"), or per identity always ("identity"). `seconds`: deadline of the whole
    request.
    """

    listener: ListenerName
    method: Method
    path: str
    endpoint: str
    who: Who
    media_types: frozenset[str]
    max_body: int
    rate: Rate
    seconds: float


_ANY: frozenset[str] = frozenset()
_JSON = frozenset({"application/json"})
_SCIM_JSON = frozenset({"application/scim+json", "application/json"})
_OCSP = frozenset({"application/ocsp-request"})
_EST = "/.well-known/est"
_BRSKI = "/.well-known/brski"
_SCIM = "/scim/v2"


def _scim(collection: str, one: str, max_body: int) -> tuple[Route, ...]:
    """A kind of SCIM resource (RFC 7644, section 3.2)."""
    every, single = f"{_SCIM}/{collection}", f"{_SCIM}/{collection}/{{id}}"
    return (
        Route("console", "GET", every, f"scim.{one}s", "token", _ANY, 0, "address", 10),
        Route("console", "POST", every, f"scim.create_{one}", "token", _SCIM_JSON, max_body, "address", 10),
        Route("console", "GET", single, f"scim.{one}", "token", _ANY, 0, "address", 10),
        Route("console", "PUT", single, f"scim.replace_{one}", "token", _SCIM_JSON, max_body, "address", 10),
        Route("console", "PATCH", single, f"scim.patch_{one}", "token", _SCIM_JSON, max_body, "address", 10),
        Route("console", "DELETE", single, f"scim.delete_{one}", "token", _ANY, 0, "address", 10),
    )


ROUTES: tuple[Route, ...] = (
    Route("device", "GET", f"{_EST}/cacerts", "est.cacerts", "anyone", _ANY, 0, "address", 10),
    Route("device", "GET", f"{_EST}/csrattrs", "registrar.csrattrs", "anyone", _ANY, 0, "address", 10),
    # The EST service itself reads media type and credentials, and says in RFC 7030's words what is wrong.
    Route("device", "POST", f"{_EST}/simpleenroll", "est.simpleenroll", "anyone", _ANY, 64 * KiB, "address", 10),
    Route("device", "POST", f"{_EST}/simplereenroll", "est.simplereenroll", "anyone", _ANY, 64 * KiB, "address", 10),
    Route("device", "GET", f"{_EST}/{{label}}/cacerts", "est.cacerts", "anyone", _ANY, 0, "address", 10),
    Route("device", "GET", f"{_EST}/{{label}}/csrattrs", "registrar.csrattrs", "anyone", _ANY, 0, "address", 10),
    Route(
        "device", "POST", f"{_EST}/{{label}}/simpleenroll", "est.simpleenroll", "anyone", _ANY, 64 * KiB, "address", 10
    ),
    Route(
        "device",
        "POST",
        f"{_EST}/{{label}}/simplereenroll",
        "est.simplereenroll",
        "anyone",
        _ANY,
        64 * KiB,
        "address",
        10,
    ),
    Route("device", "GET", f"{_EST}/fullcmc", "est.fullcmc", "anyone", _ANY, 0, "address", 10),
    Route("device", "POST", f"{_EST}/fullcmc", "est.fullcmc", "anyone", _ANY, 64 * KiB, "address", 10),
    Route("device", "GET", f"{_EST}/{{label}}/fullcmc", "est.fullcmc", "anyone", _ANY, 0, "address", 10),
    Route("device", "POST", f"{_EST}/{{label}}/fullcmc", "est.fullcmc", "anyone", _ANY, 64 * KiB, "address", 10),
    Route("device", "POST", f"{_EST}/serverkeygen", "est.serverkeygen", "anyone", _ANY, 64 * KiB, "address", 10),
    Route(
        "device", "POST", f"{_EST}/{{label}}/serverkeygen", "est.serverkeygen", "anyone", _ANY, 64 * KiB, "address", 10
    ),
    Route(
        "device",
        "POST",
        f"{_BRSKI}/requestvoucher",
        "registrar.request_voucher",
        "certificate",
        _ANY,
        256 * KiB,
        "address",
        30,
    ),
    Route(
        "device",
        "POST",
        f"{_BRSKI}/voucher_status",
        "registrar.voucher_status",
        "certificate",
        _ANY,
        64 * KiB,
        "address",
        30,
    ),
    Route(
        "device",
        "POST",
        f"{_BRSKI}/enrollstatus",
        "registrar.enroll_status",
        "certificate",
        _ANY,
        64 * KiB,
        "address",
        30,
    ),
    Route("device", "POST", "/v1/agents/nonce", "identity.nonce", "certificate", _JSON, 16 * KiB, "address", 10),
    Route("device", "POST", "/v1/agents/enroll", "identity.enroll", "certificate", _ANY, 256 * KiB, "address", 10),
    Route(
        "device", "GET", "/v1/agents/requests/{rqh}", "identity.request_status", "certificate", _ANY, 0, "address", 10
    ),
    # a long poll (RFC 7240, section 4.3): the owner's tool says how long it would wait, at most 25 s
    Route("device", "GET", "/v1/owners/self/challenges", "identity.challenges", "certificate", _ANY, 0, "address", 40),
    Route(
        "device",
        "POST",
        "/v1/owners/self/challenges/{id}",
        "identity.answer",
        "certificate",
        _JSON,
        16 * KiB,
        "address",
        10,
    ),
    Route("device", "GET", "/v1/owners/{id}/gateways", "identity.gateways", "certificate", _ANY, 0, "address", 10),
    Route("device", "GET", "/v1/owners/self/issued", "identity.own_issued", "certificate", _ANY, 0, "address", 20),
    Route(
        "device",
        "POST",
        "/v1/owners/self/agents/{id}/class",
        "identity.classify_own",
        "certificate",
        _JSON,
        KiB,
        "address",
        10,
    ),
    Route("device", "GET", "/v1/owners/self/standing", "identity.own_standing", "certificate", _ANY, 0, "address", 10),
    Route(
        "device",
        "POST",
        "/v1/owners/self/standing",
        "identity.hand_in_standing",
        "certificate",
        _JSON,
        16 * KiB,
        "address",
        10,
    ),
    Route(
        "device",
        "POST",
        "/v1/owners/self/standing/{s256}/withdraw",
        "identity.withdraw_standing",
        "certificate",
        _ANY,
        KiB,
        "address",
        10,
    ),
    Route("device", "GET", "/v1/trust", "identity.trust", "anyone", _ANY, 0, "address", 10),
    Route("device", "GET", "/v1/trust/spiffe-bundle", "identity.spiffe_bundle", "anyone", _ANY, 0, "address", 10),
    Route("decision", "POST", "/v1/decide", "access.decide", "token", _JSON, 64 * KiB, "none", 2),
    Route("decision", "POST", "/radius/failure", "access.fail", "token", _JSON, 64 * KiB, "none", 2),
    Route("decision", "POST", "/radius/accounting", "access.accounting", "token", _JSON, 64 * KiB, "none", 5),
    Route("decision", "GET", "/v1/radius/configuration", "radius.configuration", "certificate", _ANY, 0, "none", 10),
    Route("decision", "GET", "/healthz", "health.healthz", "anyone", _ANY, 0, "none", 2),
    Route("pki", "GET", "/crl/{role}.crl", "pki.crl", "anyone", _ANY, 0, "none", 10),
    Route("pki", "GET", "/ca/{role}.cer", "pki.ca", "anyone", _ANY, 0, "none", 10),
    Route("pki", "POST", "/ocsp", "pki.ocsp", "anyone", _OCSP, 8 * KiB, "address", 10),
    Route("pki", "GET", "/ocsp/{request*}", "pki.ocsp_get", "anyone", _ANY, 0, "address", 10),
    Route("pki", "GET", "/audit/checkpoint", "audit.checkpoint", "anyone", _ANY, 0, "address", 10),
    Route("pki", "GET", "/audit/key.jwk", "audit.key", "anyone", _ANY, 0, "address", 10),
    Route("console", "GET", "/healthz", "health.healthz", "anyone", _ANY, 0, "none", 10),
    Route("console", "GET", "/readyz", "health.readyz", "anyone", _ANY, 0, "none", 10),
    Route("console", "GET", "/openapi.json", "console.openapi", "anyone", _ANY, 0, "none", 10),
    Route("console", "GET", "/problems/{reason}", "console.problem", "anyone", _ANY, 0, "none", 10),
    Route("console", "GET", "/docs/", "console.docs", "anyone", _ANY, 0, "none", 10),
    Route("console", "GET", "/docs/{path*}", "console.docs", "anyone", _ANY, 0, "none", 10),
    Route("console", "GET", f"{_SCIM}/ServiceProviderConfig", "scim.config", "token", _ANY, 0, "address", 10),
    Route("console", "GET", f"{_SCIM}/ResourceTypes", "scim.types", "token", _ANY, 0, "address", 10),
    Route("console", "GET", f"{_SCIM}/ResourceTypes/{{id}}", "scim.type", "token", _ANY, 0, "address", 10),
    Route("console", "GET", f"{_SCIM}/Schemas", "scim.schemas", "token", _ANY, 0, "address", 10),
    Route("console", "GET", f"{_SCIM}/Schemas/{{id}}", "scim.schema", "token", _ANY, 0, "address", 10),
    *_scim("Users", "user", 64 * KiB),
    *_scim("Groups", "group", 1024 * KiB),
    Route("admin", "POST", "/v1/operations/{name}", "console.operation", "uid", _JSON, 4096 * KiB, "none", 120),
)
"""Every route of the appliance. fullcmc has one so that its 404 says what to use; requestauditlog has none."""

OPTIONAL = frozenset({"est.serverkeygen"})
"""Endpoints that a site may be without; their rows are not there then, and their paths are 404."""
