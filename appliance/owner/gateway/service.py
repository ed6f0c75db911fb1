"""The gateway between a proxy and its server: admit, wait for the owner, submit, hand the answer back.

`enroll` reads top to bottom in the order of its checks: who connects, rates, the request's own proof of possession, the
proxy's evidence; only then does anything wait for a person. Nothing reaches the server that was not approved (A-50).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from appliance.binding import composite, evidence, jws
from appliance.binding import request as requests
from appliance.binding.composite import Composite
from appliance.binding.errors import (
    ApprovalDenied,
    ApprovalNotExpected,
    EvidenceMissing,
    ModelNotOffered,
    OrgMaterialNotExpected,
    OriginMismatch,
    OwnerMismatch,
    RequestExpired,
    RequestWrongAudience,
)
from appliance.binding.evidence import Evidence
from appliance.binding.facts import Limits, Model
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.request import AgentRequest
from appliance.clock import Clock
from appliance.errors import RateLimited
from appliance.failpoint import failpoint
from appliance.owner.answer_policy import executable_of
from appliance.owner.client import ServerReply
from appliance.owner.errors import GatewayAgentMuted, GatewayRequestOver, ServerUnreachable
from appliance.owner.gateway.config import GatewayLimits
from appliance.owner.gateway.deciding import Rules, seconds_of, state_of
from appliance.owner.gateway.domains import Domain, KnownProxy, Proxies
from appliance.owner.gateway.fair import FairSlots
from appliance.owner.gateway.queue import Bounds, Entry, Queue
from appliance.owner.gateway.states import FIRST, QueueState
from appliance.web.limits import Bucket, Gcra
from appliance.web.peer import Peer
from est import csr

log = logging.getLogger(__name__)

PERSON_RETRY_SECONDS = 5
POLICY_RETRY_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Pending:
    """Nothing to hand back yet: come again, with fresh evidence."""

    rqh: str
    retry_after_seconds: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What the server said: a credential (200, 201), or a problem, unchanged."""

    status: int
    value: Mapping[str, Any]
    retry_after: str = ""


class GatewayService:
    """One gateway."""

    def __init__(self, queue: Queue, proxies: Proxies, rules: Rules, limits: GatewayLimits, clock: Clock) -> None:
        self._queue = queue
        self._proxies = proxies
        self._rules = rules
        self._limits = limits
        self._clock = clock
        self._bounds = Bounds(limits.queue, limits.queue_per_proxy, limits.queue_per_program, limits.mute_seconds)
        self._all = Gcra(Bucket(limits.rate, limits.burst))
        self._of_proxy = Gcra(Bucket(limits.proxy_rate, limits.proxy_burst))
        self._of_agent = Gcra(Bucket(limits.agent_rate, limits.agent_burst))
        self._slots = FairSlots(limits.submissions)
        self._under_way: set[str] = set()

    async def enroll(self, body: bytes, peer: Peer) -> Pending | Answered:
        """What became of a proxy's composite request; the same bytes may come as often as the proxy likes.

        Raises what `Proxies.check` raises, RateLimited, everything that is wrong with the request or its evidence,
        GatewayAgentMuted, GatewayQueueFull, ApprovalDenied, RequestExpired, GatewayRequestOver, ServerUnreachable.
        """
        proxy = self._proxies.check(peer)
        self._take(self._all, "", "this gateway is asked too often")
        self._take(self._of_proxy, proxy.identifier, "this proxy asks too often")
        asked = composite.read(body)
        request = self._read(asked, proxy)
        seen = self._appraise(asked, request, proxy)
        workload = workload_of(seen)
        self._take(self._of_agent, workload, "this agent asks too often")
        entry = self._queue.get(request.rqh)
        if entry is None:
            entry = self._admit(asked, request, seen, workload, proxy)
        if entry.proxy != proxy.identifier:
            raise GatewayRequestOver("another proxy has handed in this request")
        if entry.state is FIRST:
            await self._rules.settled(entry.rqh, self._limits.wait_seconds)
            entry = self._queue.get(entry.rqh) or entry
        return await self._answer(entry, asked, proxy)

    def _read(self, asked: Composite, proxy: KnownProxy) -> AgentRequest:
        """The request, if it is one for this owner and server, by whoever holds its key."""
        if asked.approvals:
            raise ApprovalNotExpected("in the owner-mediated model the gateway has the owner's approval")
        if asked.org:
            raise OrgMaterialNotExpected("organisational material is the owner's to add")
        request = requests.unseal(asked.request)
        config, server = proxy.domain.config, proxy.domain.ready()
        if request.model is not Model.OWNER_MEDIATED:
            raise ModelNotOffered("a gateway takes requests of the owner-mediated model", offered=["owner-mediated"])
        if request.standing:
            raise ApprovalNotExpected("a renewal under a standing approval goes to the server itself")
        if request.owner != config.owner:
            raise OwnerMismatch("the request names another owner than this gateway's, or none")
        if request.aud != server.server_id:
            raise RequestWrongAudience("the request is addressed to another server than this gateway's")
        if read_kind(request.sub, Kind.AGENT).origin != server.origin:
            raise OriginMismatch("this agent belongs to another trust domain")
        requests.check_times(request, self._clock.now(), Limits())
        requests.check_csr(request, None if asked.csr_der is None else csr.read(asked.csr_der))
        return request

    def _appraise(self, asked: Composite, request: AgentRequest, proxy: KnownProxy) -> Evidence:
        if asked.evidence is None:
            raise EvidenceMissing("the proxy added no evidence")
        seen = evidence.unseal(asked.evidence, proxy.key, kid=proxy.jkt)
        evidence.check(seen, request, proxy_id=proxy.identifier, now=self._clock.now())
        return seen

    def _admit(
        self, asked: Composite, request: AgentRequest, seen: Evidence, workload: str, proxy: KnownProxy
    ) -> Entry:
        """A new request, in the queue; raises GatewayAgentMuted, GatewayQueueFull."""
        now = seconds_of(self._clock)
        denied = self._queue.denied_at(workload)
        if denied is not None and now < denied + self._bounds.mute_seconds:
            raise GatewayAgentMuted(
                "the owner has just said no to this program",
                retry_after_seconds=denied + self._bounds.mute_seconds - now,
            )
        uid = seen.agent.get("uid")
        entry = self._queue.add(
            Entry(
                rqh=request.rqh, domain=proxy.domain.config.name, owner=proxy.domain.config.owner,
                server=proxy.domain.ready().server_id, proxy=proxy.identifier, workload=workload, agent=request.sub,
                purpose=request.purpose, state=FIRST, request=request.token, csr=asked.csr_der,
                executable=executable_of(seen), uid=uid if isinstance(uid, int) else None, rule=None, approval=None,
                org=(), answer=None, refused=None, created=now, expires=request.exp, updated=now,
            ),
            self._bounds,
            now,
        )  # fmt: skip
        failpoint("gateway-queued")
        log.info("event=queued rqh=%s agent=%s proxy=%s", entry.rqh, entry.agent, entry.proxy)
        self._rules.add(entry)
        return entry

    async def _answer(self, entry: Entry, asked: Composite, proxy: KnownProxy) -> Pending | Answered:
        match state_of(entry, seconds_of(self._clock)):
            case QueueState.ISSUED:
                return Answered(200, entry.answer or {})
            case QueueState.APPROVED:
                return await self._submit(entry, asked, proxy.domain)
            case QueueState.DENIED:
                raise ApprovalDenied("the owner said no")
            case QueueState.EXPIRED:
                raise RequestExpired("the owner did not answer in time; ask again with a new request")
            case QueueState.SUPERSEDED:
                raise GatewayRequestOver("a newer request of this agent took its place", state="superseded")
            case QueueState.QUEUED:
                return Pending(entry.rqh, POLICY_RETRY_SECONDS)
        return Pending(entry.rqh, PERSON_RETRY_SECONDS)

    async def _submit(self, entry: Entry, asked: Composite, domain: Domain) -> Pending | Answered:
        """The approved request with this call's evidence, to the server; the same request one at a time."""
        if entry.rqh in self._under_way:
            return Pending(entry.rqh, POLICY_RETRY_SECONDS)
        self._under_way.add(entry.rqh)
        try:
            async with self._slots.place(entry.proxy, urgent=entry.is_urgent):
                return await self._hand_in(entry, asked, domain)
        finally:
            self._under_way.discard(entry.rqh)

    async def _hand_in(self, entry: Entry, asked: Composite, domain: Domain) -> Pending | Answered:
        assert entry.approval is not None  # no row is approved without
        body = composite.write(Composite(entry.request, entry.csr, (entry.approval,), asked.evidence, entry.org))
        reply = await domain.client.submit(body)
        if reply.status == 409 and reply.value.get("reason") == "approval-spent":
            # issued before, and we died or the line broke before we had it in the file
            reply = await domain.client.submitted(entry.rqh)
        failpoint("gateway-submitted")
        if reply.status in (200, 201):
            self._queue.finish(entry.rqh, reply.value, seconds_of(self._clock))
            failpoint("gateway-finished")
            log.info("event=issued rqh=%s agent=%s", entry.rqh, entry.agent)
            return Answered(201, reply.value)
        if reply.status == 202:
            return Pending(entry.rqh, _seconds(reply))
        reason = str(reply.value.get("reason", ""))[:64]
        self._queue.note_refusal(entry.rqh, reason, seconds_of(self._clock))
        log.warning("event=server-refused rqh=%s status=%d reason=%s", entry.rqh, reply.status, reason)
        if reply.status >= 500 and reply.status != 503:
            raise ServerUnreachable(f"the identity server failed with {reply.status}")
        return Answered(reply.status, reply.value, reply.retry_after)

    def _take(self, buckets: Gcra, key: str, words: str) -> None:
        wait = buckets.take(key, self._clock.monotonic())
        if wait:
            raise RateLimited(words, retry_after_seconds=max(1, round(wait + 0.5)))


def workload_of(seen: Evidence) -> str:
    """Who asks by what the proxy measured: proxy, user and program; keys and identifiers can be made at will."""
    facts = [seen.iss, seen.agent.get("uid"), seen.agent.get("executable_digest")]
    return jws.base64url(hashlib.sha256(json.dumps(facts, sort_keys=True).encode("ascii")).digest())


def _seconds(reply: ServerReply) -> int:
    return min(60, max(1, int(reply.retry_after or POLICY_RETRY_SECONDS)))
