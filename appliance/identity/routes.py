"""The identity server's endpoints: Call and Peer in, Reply out (agent identity, section 4.3)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import composite, jws, spiffe_bundle
from appliance.binding.approval import MAX_BYTES as MAX_APPROVAL
from appliance.binding.claims import Claims
from appliance.binding.errors import Malformed
from appliance.binding.facts import PURPOSES
from appliance.binding.identifier import Kind
from appliance.binding.spiffe_bundle import SpiffeBundle
from appliance.errors import NotFound
from appliance.identity.issue import Issuer
from appliance.identity.service import Finished, IdentityService, Unfinished
from appliance.web.peer import Peer
from appliance.web.routes import Handler
from est.errors import EstError, MediaTypeNotAccepted
from est.exchange import Call, Reply
from est.json_text import encoder_of
from est.transfer import read_json

JSON = "application/json"
MAX_NONCE_BODY = 4096
MAX_ANSWER_BODY = 16_384
MAX_CLASS_BODY = 1024
STATUS_PATH = "/v1/agents/requests/"
_REFRESH_SECONDS = 300
_NONCE_MEMBERS = frozenset({"jkt", "purpose", "sub"})
_ANSWER_MEMBERS = frozenset({"approval"})
_CLASS_MEMBERS = frozenset({"class"})
_WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?([0-9]{1,4})\"?\s*(?:$|[,;])", re.ASCII)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)
_RQH = re.compile(r"[A-Za-z0-9_-]{43}", re.ASCII)
_encode = encoder_of(ensure_ascii=True)


@dataclass(frozen=True, slots=True)
class TrustInfo:
    """What everybody may know of the campus: anchors and names that agents, proxies and verifiers pin."""

    radius_server_name: str
    server_id: str
    trust_domain: str
    identity_port: int | None = None
    """Where more processes serve the agent and owner API, at the same host; None: only the device port does."""

    def write(self, issuer: Issuer) -> bytes:
        """The JSON document."""
        authorities = issuer.ca.authorities
        document: dict[str, Any] = {
            "root": _pem(issuer.ca.root),
            "links": "".join(_pem(one) for one in authorities.links),
            "radius_server_name": self.radius_server_name,
            "server_id": self.server_id,
            "trust_domain": self.trust_domain,
            "origin": issuer.domain.origin,
            "agents_ca": "".join(_pem(one) for one in _agents_cas(issuer)),
            "devices_ca": "".join(_pem(one) for one in issuer.ca.anchors("devices")),
            "oid_arc": issuer.arc,
            "wit_issuer": issuer.wit_issuer,
            "wit_keys": {
                "keys": [
                    {**jws.jwk(key, algorithm=True), "kid": kid, "use": "wit-svid"}
                    for kid, key in issuer.wit_keys.items()
                ]
            },
        }
        if self.identity_port is not None:
            document["identity_port"] = self.identity_port
        return _write(document)

    def write_bundle(self, issuer: Issuer) -> bytes:
        """The SPIFFE bundle; its sequence grows with every change of the CAs."""
        agents_cas = _agents_cas(issuer)
        changed_at = issuer.ca.authorities.changed_at
        sequence = max(agents_cas[0].not_valid_before_utc, changed_at or agents_cas[0].not_valid_before_utc)
        found = SpiffeBundle(
            agents_cas,
            issuer.wit_keys,
            int(sequence.timestamp()),
            _REFRESH_SECONDS,
        )
        return spiffe_bundle.write(found).encode()


def _agents_cas(issuer: Issuer) -> tuple[x509.Certificate, ...]:
    """The agents CAs that count, the one that signs first."""
    return issuer.ca.anchors("agents").certificates


def endpoints(service: IdentityService, trust: TrustInfo) -> Mapping[str, Handler]:
    """Endpoint names of the route table with their functions."""
    documents: dict[str, Any] = {}

    def written() -> dict[str, Any]:
        """Both documents, made once for each change of the CAs."""
        issuer = service.issuer
        if documents.get("of") is not issuer.ca.authorities:
            documents.update(of=issuer.ca.authorities, trust=trust.write(issuer), bundle=trust.write_bundle(issuer))
        return documents

    written()

    async def nonce(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        jkt, purpose, sub = read_nonce_call(call.body)
        granted = await service.nonce(jkt, purpose, sub, peer, _request_id(call))
        document = {
            "nonce": granted.nonce,
            "sub": granted.sub,
            "server_id": granted.server_id,
            "expires_in": granted.expires_in,
        }
        return Reply(200, JSON, {"cache-control": "no-store"}, _write(document))

    async def enroll(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        if call.media_type.partition(";")[0].strip().lower() not in (composite.MEDIA_TYPE, JSON):
            raise MediaTypeNotAccepted(f"a composite request is {composite.MEDIA_TYPE}")
        return _answer(await service.request(call.body, peer, _request_id(call)), 201)

    async def request_status(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        rqh = params.get("rqh", "")
        if not _RQH.fullmatch(rqh):
            raise NotFound("not the hash of a request")
        return _answer(await service.status(rqh, peer), 200)

    async def challenges(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        caller = service.challenges.caller(peer)
        found = await service.challenges.waiting(caller.owner_id, read_wait(call.headers.get("prefer", "")))
        rows = [
            {
                "id": one.id,
                "challenge": one.challenge,
                "request": one.request,
                "csr": None if one.csr is None else jws.base64url(one.csr),
            }
            for one in found
        ]
        return Reply(200, JSON, {"cache-control": "no-store"}, _write({"challenges": rows}))

    async def answer(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        caller = service.challenges.caller(peer)
        told = await service.challenges.answer(
            caller, params.get("id", ""), read_answer_call(call.body), _request_id(call)
        )
        return Reply(200, JSON, {"cache-control": "no-store"}, _write(told))

    async def gateways(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        name = params.get("id", "")
        if not _UUID.fullmatch(name):
            raise NotFound("not the name of an owner")
        owner_id = f"{service.issuer.domain.origin}/owner/{name}"
        found = await service.gateways(owner_id, peer)
        rows = [{"url": url, "spki_sha256": pin} for url, pin in found]
        return Reply(200, JSON, {"cache-control": "no-store"}, _write({"owner": owner_id, "gateways": rows}))

    async def own_standing(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        caller = service.challenges.caller(peer)
        return _told({"standing": await service.desk.standing(caller.owner_id)})

    async def hand_in_standing(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        caller = service.challenges.caller(peer)
        return _told(await service.desk.hand_in(caller, read_answer_call(call.body), _request_id(call)))

    async def withdraw_standing(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        caller = service.challenges.caller(peer)
        s256 = params.get("s256", "")
        if not _RQH.fullmatch(s256):
            raise NotFound("not the hash of a standing approval")
        told = await service.desk.withdraw(caller.owner_id, s256, actor=caller.actor, request_id=_request_id(call))
        return _told(told)

    async def classify_own(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        caller = service.challenges.caller(peer)
        name = params.get("id", "")
        if not _UUID.fullmatch(name):
            raise NotFound("not the name of an agent")
        agent_id = f"{service.issuer.domain.origin}/agent/{name}"
        return _told(await service.desk.classify(caller, agent_id, read_class_call(call.body), _request_id(call)))

    async def own_issued(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return _told(await service.desk.issued(service.challenges.caller(peer).owner_id))

    async def give_trust(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return Reply(200, JSON, {}, written()["trust"])

    async def give_bundle(call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return Reply(200, JSON, {"cache-control": f"max-age={_REFRESH_SECONDS}"}, written()["bundle"])

    return {
        "identity.nonce": nonce,
        "identity.enroll": enroll,
        "identity.request_status": request_status,
        "identity.challenges": challenges,
        "identity.answer": answer,
        "identity.gateways": gateways,
        "identity.own_standing": own_standing,
        "identity.hand_in_standing": hand_in_standing,
        "identity.withdraw_standing": withdraw_standing,
        "identity.classify_own": classify_own,
        "identity.own_issued": own_issued,
        "identity.trust": give_trust,
        "identity.spiffe_bundle": give_bundle,
    }


def _told(document: Mapping[str, object]) -> Reply:
    return Reply(200, JSON, {"cache-control": "no-store"}, _write(document))


def read_nonce_call(body: bytes) -> tuple[str, str, str | None]:
    """`{"jkt", "purpose", "sub"?}`, and nothing else. Raises Malformed, Claim..., Identifier... ."""
    claims = _read_members(body, MAX_NONCE_BODY, _NONCE_MEMBERS, "nonce call")
    sub = claims.identifier("sub", Kind.AGENT) if "sub" in claims else None
    return claims.hash("jkt"), claims.choice("purpose", PURPOSES), sub


def read_answer_call(body: bytes) -> str:
    """`{"approval"}`, the owner's signed answer, and nothing else. Raises Malformed, Claim... ."""
    claims = _read_members(body, MAX_ANSWER_BODY, _ANSWER_MEMBERS, "answer")
    return claims.text("approval", max_length=MAX_APPROVAL)


def read_class_call(body: bytes) -> str:
    """`{"class"}`, the class for an agent, and nothing else. Raises Malformed, Claim... ."""
    return _read_members(body, MAX_CLASS_BODY, _CLASS_MEMBERS, "class call").text("class", max_length=64)


def _read_members(body: bytes, max_bytes: int, known: frozenset[str], what: str) -> Claims:
    try:
        value = read_json(body, max_bytes=max_bytes, max_depth=2)
    except EstError as cause:
        raise Malformed(cause.detail, object=what) from cause
    if not isinstance(value, dict):
        raise Malformed("not a JSON object", object=what)
    claims = Claims(value, what)
    claims.check_names(known)
    return claims


def read_wait(prefer: str) -> float:
    """The seconds in `Prefer: wait=N` (RFC 7240, section 4.3); 0 where it does not say."""
    found = _WAIT.search(prefer)
    return float(found.group(1)) if found else 0.0


def _answer(answer: Finished | Unfinished, status: int) -> Reply:
    if isinstance(answer, Finished):
        return Reply(status, JSON, {"cache-control": "no-store"}, _write(answer.result))
    path = f"{STATUS_PATH}{answer.rqh}"
    headers = {"retry-after": str(answer.retry_after_seconds), "location": path, "cache-control": "no-store"}
    return Reply(202, JSON, headers, _write({"status": path, "retry_after": answer.retry_after_seconds}))


def _request_id(call: Call) -> str:
    return call.headers.get("x-request-id", "")


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode("ascii")


def _write(document: Mapping[str, object]) -> bytes:
    return _encode(document).encode("ascii")
