"""The identity server: credentials for agents, vouched for by their proxy and approved by their owner.

`request` reads top to bottom in the order of the decision (agent identity, section 8): read, submitter, rate, request,
facts, checks, evidence, model, caps, issue. Nothing is written before the yes, and the yes spends everything at once.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.binding import approval as approvals
from appliance.binding import composite, jws
from appliance.binding import request as requests
from appliance.binding.composite import Composite
from appliance.binding.errors import (
    ApprovalSpent,
    BindingError,
    Malformed,
    OrgMaterialNotExpected,
)
from appliance.binding.facts import Limits, Model
from appliance.binding.request import AgentRequest
from appliance.binding.standing import StandingApproval
from appliance.clock import Clock
from appliance.cohort import Cohort, Way
from appliance.errors import NotFound, RateLimited
from appliance.identity import records
from appliance.identity.appraisal import Appraisal, Appraiser, Verifier
from appliance.identity.approvers import ApproverRule, ClassRules
from appliance.identity.challenge_states import state_of
from appliance.identity.challenges import OwnerChallenges
from appliance.identity.errors import (
    CredentialWithdrawn,
    IdentityError,
    LifetimeNotPossible,
    RequestAbandoned,
    ReservationsFull,
    SubmitterNotProxy,
)
from appliance.identity.issue import Grant, Issuer
from appliance.identity.models import Bound, IssuanceModel, Setting, Waiting
from appliance.identity.owner_desk import OwnerDesk
from appliance.identity.records import Registry, RequestFacts
from appliance.identity.standing import bind_standing
from appliance.identity.submitter import Submitter, Submitters
from appliance.identity.withdrawn import is_held_back
from appliance.settings import IdentitySettings
from appliance.store import agents, certificates, nonces, owner_gateways, owners
from appliance.store import challenges as parked_rows
from appliance.store import requests as request_rows
from appliance.store.agents import Agent
from appliance.store.challenges import Challenge
from appliance.store.nonces import Nonce
from appliance.store.requests import Request
from appliance.store.store import Store
from appliance.store.transaction import Tx
from appliance.web.limits import Bucket, Gcra
from appliance.web.peer import Peer
from est import csr
from est.errors import EstError, Refusal

UNFINISHED_RETRY_SECONDS = 2
WORK_SECONDS = 10.0
"""The deadline of a request: for so long another process may be at work on what it began."""
RESERVATIONS_RETRY_SECONDS = 600
NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class NonceGrant:
    """A nonce, the agent identifier that goes with it, and how long both are good, in seconds."""

    nonce: str
    sub: str
    server_id: str
    expires_in: int


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The credential is not there yet; hand the request in again, or ask at its status URL."""

    rqh: str
    retry_after_seconds: int


@dataclass(frozen=True, slots=True)
class Finished:
    """What the agent gets: certificate chain, WIT, dates, log index."""

    result: Mapping[str, Any]


class _Elsewhere(NamedTuple):
    """So far so good, and the verifier elsewhere is to be asked."""

    verifier: Appraiser
    request: AgentRequest
    agent: Agent
    now: datetime


class _Asking(NamedTuple):
    """Not enough approvals yet."""

    answer: Waiting
    request: AgentRequest
    rule: ApproverRule


class _Yes(NamedTuple):
    """What is to be issued; `earlier` is the request as it was begun before, if it was."""

    grant: Grant
    agent: Agent
    earlier: Request | None
    appraisal: Appraisal


class IdentityService:
    """Nonces, requests and their results, with its collaborators."""

    def __init__(
        self,
        settings: IdentitySettings,
        *,
        server_id: str,
        origin: str,
        store: Store,
        clock: Clock,
        submitters: Submitters,
        registry: Registry,
        verifier: Verifier | Appraiser,
        models: Mapping[Model, IssuanceModel],
        issuer: Issuer,
        challenges: OwnerChallenges,
        desk: OwnerDesk,
        rules: ClassRules,
    ) -> None:
        """`assemble.build_identity` makes the collaborators. `models` are those that are offered here."""
        self._settings = settings
        self._server_id = server_id
        self._origin = origin
        self._store = store
        self._clock = clock
        self._submitters = submitters
        self._registry = registry
        self._verifier = verifier
        self._models = dict(models)
        self._issuer = issuer
        self.challenges = challenges
        self.desk = desk
        self._rules = rules
        self._rates = Gcra(Bucket(settings.proxy_rate, settings.proxy_burst))
        self._under_way: set[str] = set()
        self._cohort = Cohort()

    @property
    def issuer(self) -> Issuer:
        """What signs, with the names that go into credentials."""
        return self._issuer

    @property
    def _limits(self) -> Limits:
        return self._issuer.limits

    async def close(self) -> None:
        """Ends connections to a verifier elsewhere."""
        await self._verifier.close()

    def is_gateway(self, peer: Peer) -> bool:
        """Whether an active owner's registered client key made this connection."""
        try:
            return self._submitters.gateway(peer) is not None
        except (BindingError, EstError):
            return False

    async def nonce(self, jkt: str, purpose: str, sub: str | None, peer: Peer, request_id: str = "") -> NonceGrant:
        """A nonce for a key; without `sub` an agent identifier is reserved for (proxy, key).

        Raises what `Submitters.check` raises, RateLimited, AgentUnknown, AgentRevoked, ReservationsFull.
        """
        submitter = await self._submitters.check(peer)
        self._take_token(submitter)
        life = timedelta(hours=self._settings.nonce_hours)
        value = secrets.token_urlsafe(NONCE_BYTES)

        def write(tx: Tx) -> Agent:
            nonces.forget(tx, before=tx.now - records.KEPT_AFTER_EXPIRY)
            agent = self._agent_for(tx, submitter, jkt, sub, request_id)
            nonces.add(tx, Nonce(value, jkt, purpose, agent.identifier, submitter.proxy_id, tx.now + life))
            return agent

        agent = await self._store.write(write, quick=True)
        return NonceGrant(value, agent.identifier, self._server_id, int(life.total_seconds()))

    async def gateways(self, owner_id: str, peer: Peer) -> list[tuple[str, str]]:
        """Address and server key (SPKI SHA-256, hex) of an owner's gateways, for a proxy that may use them.

        Raises what `Submitters.check` raises, RateLimited, NotFound, which does not say whether such an owner exists.
        """
        submitter = await self._submitters.check(peer)
        self._take_token(submitter)

        def read(tx: Tx) -> list[tuple[str, str]]:
            owner = owners.by_identifier(tx, owner_id)
            allowed = owners.allowed_proxies(tx, owner_id)
            if owner is None or owner.state != owners.ACTIVE:
                return []
            if allowed is not None and submitter.proxy_id not in allowed:
                return []
            return [(one.url, one.spki_sha256) for one in owner_gateways.of_owner(tx, owner_id) if one.is_active]

        found = await self._store.read(read)
        if not found:
            raise NotFound("no gateway of such an owner is there for this proxy")
        return found

    async def request(self, body: bytes, peer: Peer, request_id: str = "") -> Finished | Unfinished:
        """The credential for a composite request, or a typed refusal; what a proxy is refused is audited.

        Raises Malformed, what `Submitters.check` and `behind` raise, RateLimited, and everything that the decision
        refuses.
        """
        asked = composite.read(body)
        if asked.self_asserted:
            raise Malformed(
                "what an agent says about itself stands in its proxy's evidence", object="composite request"
            )
        gateway = self._submitters.gateway(peer)
        submitter = None if gateway is not None else await self._submitters.check(peer)
        try:
            if gateway is not None:
                submitter = await self._submitters.behind(gateway, asked.evidence)
            assert submitter is not None
            self._take_token(submitter)
            with self._cohort:
                return await self._decide(asked, submitter, request_id)
        except (BindingError, EstError, IdentityError) as refusal:
            known = submitter or gateway
            assert known is not None
            await self._note_refusal(asked, refusal, known.actor, request_id)
            raise

    async def status(self, rqh: str, peer: Peer) -> Finished | Unfinished:
        """How a request of this proxy, or of this owner's gateway, stands.

        A finished one gives the same result as often as it is asked, until it is withdrawn and not while suspended.

        Raises what `Submitters.check` raises, RateLimited, NotFound, RequestAbandoned, CredentialWithdrawn, and for a
        parked request what `ApproverRule.is_reached` raises.
        """
        gateway = self._submitters.gateway(peer)
        if gateway is None:
            submitter = await self._submitters.check(peer)
            self._take_token(submitter)
        asking = submitter.proxy_id if gateway is None else gateway.owner_id

        def read(tx: Tx) -> tuple[Request | None, bytes | None]:
            row = request_rows.get(tx, rqh)
            if row is None and self._is_parked(tx, parked_rows.by_rqh(tx, rqh), asking):
                return None, None
            if row is None or (row.proxy_id if gateway is None else row.owner_id) != asking:
                raise NotFound("you handed in no such request")
            if row.result is not None and is_held_back(tx, row):
                raise CredentialWithdrawn("what was issued for this request is revoked or suspended")
            serial = row.result.get("serial") if row.result else None
            found = certificates.by_role_and_serial(tx, "agents", int(serial, 16)) if serial else None
            return row, None if found is None else found.der

        row, der = await self._store.read(read)
        if row is None:  # parked: once approved, it must be handed in again with new evidence
            return Unfinished(rqh, UNFINISHED_RETRY_SECONDS)
        if row.result is not None:
            return Finished(self._issuer.answer(row.result, der))
        if rqh not in self._under_way and requests.unseal(row.request).exp < self._clock.now().timestamp():
            raise RequestAbandoned("the request expired before its credential was finished; make a new one")
        return Unfinished(rqh, UNFINISHED_RETRY_SECONDS)

    def _is_parked(self, tx: Tx, parked: list[Challenge], asking: str) -> bool:
        """Whether a request waits for approvers or to be handed in again; raises as status() for one that ended."""
        if not parked:
            return False
        rule, owner_id = self.challenges.rule_of(tx, parked[0])
        if asking not in (parked[0].proxy_id, owner_id):
            return False
        rule.is_reached(owner_id, [(one.owner_id, state_of(one, tx.now)) for one in parked])
        request = requests.unseal(parked[0].request)
        if tx.now.timestamp() > request.exp + self._limits.of(request.model).skew_seconds:
            raise RequestAbandoned("the request expired before its credential was begun; make a new one")
        return True

    async def _decide(
        self, asked: Composite, submitter: Submitter, request_id: str, appraisal: Appraisal | None = None
    ) -> Finished | Unfinished:
        found = await self._cohort.run(self._judge(asked, submitter, appraisal))
        if isinstance(found, Unfinished):
            return found
        if isinstance(found, _Elsewhere):
            appraisal = await found.verifier.appraise(
                asked.evidence, found.request, submitter, agent_class=found.agent.agent_class, now=found.now
            )
            # Seconds may have gone by: owner, key, agent and nonce are looked at again before anything is spent.
            return await self._decide(asked, submitter, request_id, appraisal)
        if isinstance(found, _Yes):
            return await self._issue(found, submitter, request_id)
        answer = found.answer
        if answer.must_ask:
            await self.challenges.park(
                found.request,
                asked.csr_der,
                rule=found.rule,
                brought=answer.brought,
                proxy_id=submitter.proxy_id,
                actor=submitter.actor,
                request_id=request_id,
            )
        elif answer.replaced:
            await self.challenges.replace(answer.replaced, submitter.actor, request_id)
        return Unfinished(found.request.rqh, answer.retry_after_seconds)

    def _judge(
        self, asked: Composite, submitter: Submitter, appraisal: Appraisal | None
    ) -> Way[Unfinished | _Elsewhere | _Asking | _Yes]:
        """The decision, without a wait; nothing is written.

        It comes back with what has to be waited for: a verifier elsewhere, if `appraisal` is not its answer; somebody
        to be asked; or what is to be issued. Or with Unfinished, where the request is being worked on.
        """
        request = requests.unseal(asked.request)
        yield
        sealed = [approvals.read(one) for one in asked.approvals]
        facts = self._store.read_sync(lambda tx: self._registry.gather(tx, request, sealed))
        earlier = facts.earlier
        if earlier is not None and earlier.proxy_id == submitter.proxy_id:
            if earlier.state == request_rows.ISSUED:
                raise ApprovalSpent("this request got its credential; ask at its status URL", rqh=request.rqh)
            if self._is_under_way(earlier):
                return Unfinished(request.rqh, UNFINISHED_RETRY_SECONDS)
            facts = _without_own_spending(facts)
        if request.model is not Model.OWNER_MEDIATED or request.standing:
            # a standing approval names neither a gateway nor material, so neither may stand beside it
            if submitter.gateway_of is not None:
                raise SubmitterNotProxy("a gateway submits what its owner approved in the owner-mediated model")
            if asked.org:
                raise OrgMaterialNotExpected("organisational material is for the owner-mediated model")
        yield
        certification_request = None if asked.csr_der is None else csr.read(asked.csr_der)
        now = self._clock.now()
        limits = self._limits.of(request.model)
        requests.check(
            request,
            csr=certification_request,
            nonce=facts.nonce,
            server_id=self._server_id,
            origin=self._origin,
            proxy_id=submitter.proxy_id,
            now=now,
            limits=limits,
            models=self._models,
            key_holder=facts.key_holder,
            agent_owner=None if facts.agent is None else facts.agent.owner_id,
            live_key=facts.live_key,
        )
        agent = records.check_agent(facts.agent, submitter)
        yield
        if appraisal is None:
            if not isinstance(self._verifier, Verifier):
                return _Elsewhere(self._verifier, request, agent, now)
            appraisal = self._verifier.appraise(
                asked.evidence, request, submitter, agent_class=agent.agent_class, now=now
            )
            yield
        setting = Setting(
            self._server_id,
            submitter.proxy_id,
            now,
            limits,
            agent.owner_id,
            facts.seats,
            submitter.gateway_of,
            self._rules.of(agent.agent_class),
        )
        answer: Bound | Waiting
        if request.standing:
            answer = bind_standing(request, facts.approvers, setting, appraisal.evidence, agent.agent_class)
        else:
            answer = self._models[request.model].bind(asked, request, facts.approvers, setting)
        yield
        if isinstance(answer, Waiting):
            return _Asking(answer, request, setting.rule)
        txn = facts.seats[0].row.txn if facts.seats else request.txn or str(uuid.uuid4())
        grant = self._grant(request, answer, appraisal, submitter, now, txn, asked.org)
        return _Yes(grant, agent, facts.earlier, appraisal)

    def _is_under_way(self, row: Request) -> bool:
        """Whether somebody is at work on it: this process, or perhaps another one that touched it just now."""
        if row.rqh in self._under_way:
            return True
        untouched = self._clock.now() - row.updated_at
        return self._settings.workers > 0 and timedelta(0) <= untouched < timedelta(seconds=WORK_SECONDS)

    def _grant(
        self,
        request: AgentRequest,
        bound: Bound,
        appraisal: Appraisal,
        submitter: Submitter,
        now: datetime,
        txn: str,
        org: tuple[str, ...],
    ) -> Grant:
        """What is granted: the profiles both asked and approved, for the shortest of all lives (A-105)."""
        caps = {
            "setting": int(self._settings.agent_hours * 3600),
            "issuing-ca": _seconds(self._issuer.ca.issuing("agents").certificate.not_valid_after_utc - now),
            "proxy-certificate": _seconds(submitter.not_after - now),
        }
        if appraisal.longest_seconds is not None:
            caps["appraisal"] = appraisal.longest_seconds
        ends = [key.not_after for key in bound.keys if key.not_after is not None]
        if ends:
            caps["owner-key"] = _seconds(min(ends) - now)
        stands_until = [one.exp for one in bound.approvals if isinstance(one, StandingApproval)]
        if stands_until:
            caps["standing-approval"] = int(min(stands_until) - now.timestamp())
        profiles, ttl = request.profiles, min(request.ttl, *caps.values())
        for one in bound.approvals:
            allowed, ttl = approvals.bounds(request, one, ttl)
            profiles = tuple(profile for profile in profiles if profile in allowed)
        if ttl < 1 or not profiles:
            raise LifetimeNotPossible("no life is left for this credential", cap=min(caps, key=caps.__getitem__))
        return Grant(
            request=request,
            approvals=bound.approvals,
            owner=bound.owner,
            evidence=appraisal.evidence.token,
            ear=appraisal.ear,
            profiles=profiles,
            ttl_seconds=ttl,
            txn=txn,
            proxy_id=submitter.proxy_id,
            org=org,
            tier=str(appraisal.tier),
            key_origin=str(appraisal.evidence.agent.get("key_origin", "")),
            seats=bound.seats,
        )

    async def _issue(self, found: _Yes, submitter: Submitter, request_id: str) -> Finished | Unfinished:
        grant, agent, earlier, appraisal = found
        rqh = grant.request.rqh
        if rqh in self._under_way:
            return Unfinished(rqh, UNFINISHED_RETRY_SECONDS)
        if earlier is not None:
            grant = replace(grant, txn=earlier.txn)

        def on_pending(tx: Tx, row_id: int | None) -> None:
            if earlier is None:
                records.spend(tx, grant, agent, submitter, row_id)
                records.tell_decision(tx, grant, agent, submitter.actor, request_id)
            else:
                records.take_up(tx, earlier, grant, agent, submitter, row_id)
            records.tell_appraisal(tx, grant, appraisal.tier, submitter.actor, request_id)

        self._under_way.add(rqh)
        try:
            answer = await self._issuer.issue(
                grant,
                actor=submitter.actor,
                request_id=request_id,
                on_pending=on_pending,
                on_issued=lambda tx, result: request_rows.finish(tx, rqh, result),
            )
        finally:
            self._under_way.discard(rqh)
        return Finished(answer)

    def _agent_for(self, tx: Tx, submitter: Submitter, jkt: str, sub: str | None, request_id: str) -> Agent:
        """The agent that a nonce is for; a new one is reserved where the key has none behind this proxy."""
        if sub is not None:
            return records.check_agent(agents.by_identifier(tx, sub), submitter)
        known = agents.open_for(tx, submitter.proxy_id, jkt)
        if known is not None:
            agents.touch(tx, known)
            return known
        forgotten = tx.now - timedelta(hours=self._settings.nonce_hours)
        if agents.reserved(tx, submitter.proxy_id) >= self._settings.reserve_per_proxy:
            agents.forget(tx, submitter.proxy_id, before=forgotten)
            if agents.reserved(tx, submitter.proxy_id) >= self._settings.reserve_per_proxy:
                raise ReservationsFull(
                    "this proxy holds too many unused identifiers", retry_after_seconds=RESERVATIONS_RETRY_SECONDS
                )
        name = str(uuid.uuid4())
        made = Agent(
            id=name,
            identifier=f"{self._origin}/agent/{name}",
            owner_id=None,
            proxy_id=submitter.proxy_id,
            jkt=jkt,
            agent_class="",
            state=agents.RESERVED,
            created_at=tx.now,
            updated_at=tx.now,
        )
        agents.add(tx, made)
        audit.append(
            tx,
            AuditEvent("agent-reserved", submitter.actor, made.identifier, request_id=request_id, fields={"jkt": jkt}),
        )
        return made

    def _take_token(self, submitter: Submitter) -> None:
        wait = self._rates.take(submitter.proxy_id, self._clock.monotonic())
        if wait:
            raise RateLimited("this proxy asks too often", retry_after_seconds=max(1, round(wait + 0.5)))

    async def _note_refusal(self, asked: Composite, refusal: Refusal, actor: Actor, request_id: str) -> None:
        """One audit entry, with hashes only: what could not be verified is nobody's word."""
        event = AuditEvent(
            "agent-request-refused",
            actor,
            outcome="refused",
            reason=refusal.reason,
            request_id=request_id,
            fields={
                "rqh": jws.s256(asked.request),
                "approvals_s256": [jws.s256(one) for one in asked.approvals],
                "evidence_s256": None if asked.evidence is None else jws.s256(asked.evidence),
            },
        )
        await self._store.write(lambda tx: audit.append(tx, event))


def _without_own_spending(facts: RequestFacts) -> RequestFacts:
    """Facts for a request that is taken up again: its own nonce counts as unspent, since it spent it itself."""
    return facts if facts.nonce is None else facts._replace(nonce=replace(facts.nonce, is_spent=False))


def _seconds(left: timedelta) -> int:
    return int(left.total_seconds())
