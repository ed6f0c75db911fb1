"""The Agent API: what local agents may ask of the proxy, over its Unix socket.

The proxy adds evidence about the process that calls and passes on the agent's own signed bytes unchanged; any change
would break their signatures at the server (A-14). Who calls is the kernel's word, never the body's.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from appliance.binding import composite, identifier, jws
from appliance.binding import request as agent_request
from appliance.binding.errors import ModelNotOffered
from appliance.binding.facts import PURPOSES, Model
from appliance.binding.request import AgentRequest
from appliance.clock import Clock
from appliance.proxy.caller import Measurement, caller_of, check_alive, measure
from appliance.proxy.callers import CallerBook
from appliance.proxy.errors import AgentCallMalformed, IdentityServerAway
from appliance.proxy.evidence import Device, attest
from appliance.proxy.gateways import Gateways
from appliance.proxy.link import Sender
from appliance.proxy.tpm_quotes import TpmQuotes
from appliance.web.peer import Peer
from appliance.web.routes import Handler, Route
from est.errors import EstError
from est.exchange import Call, Reply
from est.signer import Signer
from est.transfer import read_json

log = logging.getLogger(__name__)

JSON = "application/json"
PROBLEM = "application/problem+json"
_JSON = frozenset({JSON})
_ENROLL = frozenset({JSON, composite.MEDIA_TYPE})
_RELAYED_HEADERS = ("retry-after",)
MAX_NONCE_BYTES = 4096
GATEWAY_PATH = "/v1/gateway/enroll"

ROUTES: tuple[Route, ...] = (
    Route("agent", "POST", "/v1/nonce", "agent.nonce", "uid", _JSON, MAX_NONCE_BYTES, "identity", 20),
    Route("agent", "POST", "/v1/enroll", "agent.enroll", "uid", _ENROLL, composite.MAX_BYTES, "identity", 40),
    Route("agent", "GET", "/v1/trust", "agent.trust", "uid", frozenset(), 0, "identity", 20),
)
"""Every route of the socket; a bucket per uid."""


@dataclass(frozen=True, slots=True)
class Attester:
    """Who signs evidence now; replaced when the LDevID is renewed."""

    device: Device
    signer: Signer


class AgentApi:
    """The endpoints. `attester` is asked anew for each request, because renewal changes the key."""

    def __init__(
        self,
        server: Sender,
        attester: Callable[[], Attester],
        callers: CallerBook,
        clock: Clock,
        *,
        allow_root: bool = False,
        gateways: Gateways | None = None,
        quotes: TpmQuotes | None = None,
    ) -> None:
        """`gateways`: the way to owners' gateways; None: the owner-mediated model is not offered here.

        `quotes`: this machine's TPM, if evidence is to have its word.
        """
        self._quotes = quotes
        self._gateways = gateways
        self._server = server
        self._attester = attester
        self._callers = callers
        self._clock = clock
        self._allow_root = allow_root

    def endpoints(self) -> Mapping[str, Handler]:
        """Endpoint names of ROUTES with their functions."""
        return {"agent.nonce": self.nonce, "agent.enroll": self.enroll, "agent.trust": self.trust}

    async def nonce(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """A fresh nonce for a key, and the identifier that goes with it; from now on the key is this caller's."""
        asked = read_nonce_call(call.body)
        with caller_of(peer, allow_root=self._allow_root) as caller:
            self._callers.claim(caller.uid, asked["jkt"])
        body = json.dumps(asked, separators=(",", ":")).encode("ascii")
        reply = await self._server.send(Call("POST", "/v1/agents/nonce", JSON, {"accept": JSON}, body))
        return _relayed(reply)

    async def enroll(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """The agent's composite request, as `hand_in` does it."""
        return await self.hand_in(call.body, peer)

    async def hand_in(self, body: bytes, peer: Peer, *, key_by_proxy: bool = False) -> Reply:
        """The composite request plus evidence, to the server or, in the owner-mediated model, to the owner's gateway;
        the answer back, to this caller only. `key_by_proxy`: its key was made here, and the evidence says so."""
        handed_in = composite.read(body)
        if handed_in.evidence is not None or handed_in.org:
            raise AgentCallMalformed("evidence and organisational material are not for the agent to add")
        request = agent_request.unseal(handed_in.request)
        with caller_of(peer, allow_root=self._allow_root) as caller:
            self._callers.claim(caller.uid, request.jkt)
            seen: Measurement = await asyncio.to_thread(measure, caller)
            quote = None if self._quotes is None else await self._quotes.about(request)
            attester = self._attester()
            token = attest(
                attester.device,
                attester.signer,
                self._clock,
                request,
                seen,
                handed_in.self_asserted,
                key_by_proxy=key_by_proxy,
                quote=quote,
            )
            body = composite.write(handed_in.with_evidence(token))
            reply = await self._pass_on(request, body)
            if not _is_for_gateway(request) and reply.status == 409 and _reason(reply) == "approval-spent":
                # it was issued, and the answer got lost on the way: ask for the same result again
                path = f"/v1/agents/requests/{request.rqh}"
                reply = await self._server.send(Call("GET", path, headers={"accept": JSON}))
            check_alive(caller)
        log.info(
            "agent request uid=%d pid=%d jkt=%s agent=%s status=%d",
            caller.uid,
            caller.pid,
            request.jkt,
            request.sub,
            reply.status,
        )
        return _relayed(reply)

    async def _pass_on(self, request: AgentRequest, body: bytes) -> Reply:
        """To whoever takes requests of this model; an approved one reaches the server by its gateway alone (A-50).

        Under a standing approval there is nothing for a gateway to approve.
        """
        if not _is_for_gateway(request):
            return await self._server.send(
                Call("POST", "/v1/agents/enroll", composite.MEDIA_TYPE, {"accept": JSON}, body)
            )
        if self._gateways is None:
            raise ModelNotOffered("the owner-mediated model is not offered by this proxy")
        if request.owner is None:
            raise AgentCallMalformed("a request of the owner-mediated model names its owner")
        call = Call("POST", GATEWAY_PATH, composite.MEDIA_TYPE, {"accept": JSON}, body)
        return await self._gateways.send(request.owner, call)

    async def trust(self, call: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        """The campus root and the RADIUS server's name, for the agent's supplicant."""
        with caller_of(peer, allow_root=self._allow_root):
            pass
        return _relayed(await self._server.send(Call("GET", "/v1/trust", headers={"accept": JSON})))


def _is_for_gateway(request: AgentRequest) -> bool:
    return request.model is Model.OWNER_MEDIATED and not request.standing


def read_nonce_call(body: bytes) -> dict[str, str]:
    """`{"jkt", "purpose", "sub"?}`, checked. Raises AgentCallMalformed, Malformed, Identifier... leaves."""
    try:
        value = read_json(body, max_bytes=MAX_NONCE_BYTES, max_depth=2)
    except EstError as cause:
        raise AgentCallMalformed(f"the body does not read: {cause.detail}") from cause
    if not isinstance(value, dict) or not {"jkt", "purpose"} <= value.keys() <= {"jkt", "purpose", "sub"}:
        raise AgentCallMalformed("the body has the members jkt, purpose and perhaps sub")
    jkt = value["jkt"]
    if not isinstance(jkt, str) or len(jkt) > 64 or len(jws.unbase64url(jkt, "jkt")) != 32:
        raise AgentCallMalformed("jkt is not the thumbprint of a key (RFC 7638)")
    if value["purpose"] not in PURPOSES:
        raise AgentCallMalformed(f"purpose is one of {', '.join(PURPOSES)}")
    if "sub" in value:
        if not isinstance(value["sub"], str):
            raise AgentCallMalformed("sub is not an identifier")
        identifier.read_kind(value["sub"], identifier.Kind.AGENT)
    return {name: value[name] for name in ("jkt", "purpose", "sub") if name in value}


def _relayed(reply: Reply) -> Reply:
    """The server's answer as the agent gets it: JSON only, and of its headers only Retry-After."""
    media_type = reply.media_type.partition(";")[0].strip().lower()
    if media_type not in (JSON, PROBLEM):
        raise IdentityServerAway(
            "the identity server's answer is not one of its own", status=reply.status, retry_after_seconds=5
        )
    headers = {name: reply.headers[name] for name in _RELAYED_HEADERS if name in reply.headers}
    return Reply(reply.status, media_type, headers, reply.body)


def _reason(reply: Reply) -> str:
    try:
        value = read_json(reply.body, max_bytes=65_536, max_depth=8)
    except EstError:
        return ""
    reason = value.get("reason") if isinstance(value, dict) else None
    return reason if isinstance(reason, str) else ""
