"""Asking approvers: challenges are made and parked, each waits for its owner's tool and takes one signed answer.

Everything is in the store before anybody hears of it, so a server that dies at any point has forgotten nothing. TLS
says who speaks and is never an approval: the answer is a signed object of its own (A-99).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.binding import approval as approvals
from appliance.binding import jws
from appliance.binding import request as requests
from appliance.binding.approval import OwnerApproval
from appliance.binding.errors import (
    ApprovalDenied,
    ApprovalSpent,
    BindingError,
    ChallengeExpired,
    OwnerNotActive,
    ProxyNotAllowed,
)
from appliance.binding.facts import Limits, Model
from appliance.binding.request import AgentRequest
from appliance.clock import Clock
from appliance.errors import CertificateRequired, NotFound
from appliance.failpoint import failpoint
from appliance.identity.approvers import ApproverRule, ClassRules
from appliance.identity.challenge_states import ChallengeEvent, ChallengeState, state_of, step
from appliance.identity.errors import (
    AgentMuted,
    ApproversNotDistinct,
    ApproversOutOfReach,
    ChallengeOver,
    ChallengesFull,
    IdentityError,
    OwnerClientUnknown,
)
from appliance.identity.questions import Questions, new_challenge_id, tell_parked
from appliance.identity.records import KEPT_AFTER_EXPIRY, Registry
from appliance.settings import IdentitySettings
from appliance.store import agents, owner_clients, owners
from appliance.store import challenges as rows
from appliance.store.challenges import Challenge
from appliance.store.standing import is_approver
from appliance.store.store import Store
from appliance.store.transaction import OutboxRow, Tx
from appliance.web.peer import Peer
from est.signer import Signer

MAX_WAIT_SECONDS = 25.0
"""Longest wait of a long poll; the route's deadline is above it."""
LOOK_SECONDS = 2.0
"""How often a long poll looks into the store for what another process parked."""
MAX_WAITING_CALLS = 4
"""Long polls of one owner at a time; one more is answered at once."""
FULL_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class OwnerCaller:
    """The owner behind a connection."""

    owner_id: str
    actor: Actor


class OwnerChallenges:
    """Challenges, from the moment an owner must be asked to the answer."""

    def __init__(
        self,
        settings: IdentitySettings,
        *,
        server_id: str,
        store: Store,
        clock: Clock,
        signer: Signer,
        registry: Registry,
        limits: Limits,
        rules: ClassRules,
    ) -> None:
        """`signer` is the agents CA's key, whose certificate owners check against the root that they pinned."""
        self._settings = settings
        self._server_id = server_id
        self._store = store
        self._clock = clock
        self._questions = Questions(settings, server_id=server_id, store=store, clock=clock, signer=signer)
        self._registry = registry
        self._limits = limits.of(Model.SERVER_MEDIATED)
        self._rules = rules
        self._calls: dict[str, set[asyncio.Event]] = {}
        self._is_closed = False
        store.subscribe(self._on_events)

    def caller(self, peer: Peer) -> OwnerCaller:
        """The owner whose registered client key made this connection (the way of RFC 8705, section 2.2).

        Raises CertificateRequired, OwnerClientUnknown, OwnerNotActive.
        """
        key = peer.key_sha256
        if key is None:
            raise CertificateRequired("owner routes are for owners' tools with their registered client key")
        found = self._store.read_sync(lambda tx: owner_clients.caller(tx, key))
        if found is None:
            raise OwnerClientUnknown("no owner has registered this client key")
        if found.owner_state != owners.ACTIVE:
            raise OwnerNotActive("this owner is not active")
        return OwnerCaller(found.owner_id, Actor("owner", found.owner_id, found.jkt, peer.address))

    async def park(
        self,
        request: AgentRequest,
        csr_der: bytes | None,
        *,
        rule: ApproverRule,
        brought: Sequence[OwnerApproval],
        proxy_id: str,
        actor: Actor,
        request_id: str,
    ) -> None:
        """Park a good request and make a challenge for each approver; one that is parked already stays as it is (A-93).

        `brought` are good approvals that came along: nobody is asked for them. A further approver who cannot be asked
        is left out, if enough others can. Raises RequestExpired, OwnerNotActive, ProxyNotAllowed, AgentMuted,
        ChallengesFull, ApproversOutOfReach; then nothing is parked and nobody is asked.
        """
        owner_id = request.owner
        if owner_id is None:
            raise ValueError("only requests in an owner's name come here")
        made = self._questions.about(request, csr_der, rule.seats(owner_id), brought, proxy_id)

        def write(tx: Tx) -> None:
            rows.forget(tx, before=tx.now - KEPT_AFTER_EXPIRY)
            if rows.by_rqh(tx, request.rqh):
                return
            rows.supersede(tx, request.sub)
            left_out: list[BindingError | IdentityError] = []
            for one in made:
                try:
                    if one.challenge is not None:
                        self._check_may_ask(tx, one)
                except (BindingError, IdentityError) as refusal:
                    if one.owner_id == owner_id:
                        raise
                    left_out.append(refusal)
                    continue
                rows.add(tx, one)
                tell_parked(tx, one, actor, request_id)
            if len(made) - len(left_out) >= rule.count:
                return
            if left_out:
                raise left_out[-1]
            raise ApproversOutOfReach(
                f"{rule.count} must approve, and not so many are named", needed=rule.count, approved=len(brought)
            )

        await self._store.write(write)
        failpoint("challenge-parked")

    async def replace(self, replaced: Sequence[tuple[str, OwnerApproval]], actor: Actor, request_id: str) -> None:
        """Put good approvals in the places of unspent ones that came along with a parked request, all or none.

        Raises ApprovalSpent for a place whose approval was spent or replaced meanwhile, ApproversNotDistinct for a key
        that has said yes at another place meanwhile.
        """

        def write(tx: Tx) -> None:
            made = []
            for challenge_id, approval in replaced:
                new_id = new_challenge_id()
                if not rows.replace_brought(tx, challenge_id, new_id=new_id, token=approval.token):
                    raise ApprovalSpent("this request was decided or handed in meanwhile", rqh=approval.rqh)
                made.append((new_id, approval.kid))
            for new_id, kid in made:
                row = rows.get(tx, new_id)
                assert row is not None  # this transaction named it
                _check_other_key(tx, row, kid)
                tell_parked(tx, row, actor, request_id)

        await self._store.write(write)

    async def waiting(self, owner_id: str, wait_seconds: float) -> list[Challenge]:
        """What waits for an owner's answer; comes back as soon as there is something, at the latest after the wait."""
        mine = self._calls.setdefault(owner_id, set())
        deadline = self._clock.monotonic() + (min(wait_seconds, MAX_WAIT_SECONDS) if self._may_wait(mine) else 0.0)
        told = asyncio.Event()
        mine.add(told)

        def read(tx: Tx) -> list[Challenge]:
            return rows.waiting(tx, owner_id, count=self._settings.challenges_per_owner)

        try:
            while True:
                told.clear()
                found = await self._store.read(read)
                left = deadline - self._clock.monotonic()
                if found or left <= 0 or self._is_closed:
                    return found
                try:
                    await asyncio.wait_for(told.wait(), min(left, LOOK_SECONDS))
                except TimeoutError:
                    continue
        finally:
            mine.discard(told)
            if not mine and self._calls.get(owner_id) is mine:
                del self._calls[owner_id]

    async def answer(self, caller: OwnerCaller, challenge_id: str, token: str, request_id: str) -> Mapping[str, Any]:
        """Take an owner's signed yes or no to a challenge of this owner; the same answer may come again.

        Raises NotFound for a challenge of anybody else, ChallengeExpired, ChallengeOver, and what `approval.check`
        raises; refusals are audited and leave the challenge waiting.
        """
        found = await self._store.read(lambda tx: rows.get(tx, challenge_id))
        if found is None or found.owner_id != caller.owner_id:
            raise NotFound("no such challenge was made for you")
        state = state_of(found, self._clock.now())
        if found.answer is not None and found.answer == token:
            return _told(found, is_denial=state is ChallengeState.DENIED)  # our reply was lost, theirs was not
        try:
            if state is ChallengeState.EXPIRED:
                raise ChallengeExpired("the challenge is over; the agent must ask again")
            is_denial = self._check(found, token)
            kid = approvals.kid_of(token)
            if not is_denial:
                self._store.read_sync(lambda tx: _check_other_key(tx, found, kid))
            event = ChallengeEvent.OWNER_DENIED if is_denial else ChallengeEvent.OWNER_APPROVED
            after = step(state, event)
        except (BindingError, ApproversNotDistinct, ChallengeOver) as refusal:
            await self._note_refusal(caller, found, token, refusal.reason, request_id)
            raise

        def write(tx: Tx) -> None:
            if not is_approver(tx, found.owner_id, kid):
                raise OwnerNotActive("this owner or its key is not active any more")
            if not is_denial:
                _check_other_key(tx, found, kid)
            if not rows.answer(tx, found.id, state=after.value, token=token):
                raise ChallengeOver("the challenge was answered or ended meanwhile")
            fields = {
                "txn": found.txn,
                "challenge": found.id,
                "agent": found.agent_id,
                "rqh": found.rqh,
                "approval_s256": jws.s256(token),
                "kid": kid,
                "decision": "deny" if is_denial else "approve",
            }
            event = AuditEvent("owner-answered", caller.actor, found.owner_id, request_id=request_id, fields=fields)
            audit.append(tx, event)
            if is_denial and not self._can_still(tx, found):
                rows.close(tx, found.rqh)

        await self._store.write(write)
        failpoint("challenge-answered")
        return _told(found, is_denial=is_denial)

    def release(self) -> None:
        """Answer every long poll now: the server is about to stop."""
        self._is_closed = True
        for calls in self._calls.values():
            for told in calls:
                told.set()

    def _may_wait(self, mine: set[asyncio.Event]) -> bool:
        return len(mine) < MAX_WAITING_CALLS

    def rule_of(self, tx: Tx, parked: Challenge) -> tuple[ApproverRule, str | None]:
        """Who must approve what is parked, and whose the agent is."""
        agent = agents.by_identifier(tx, parked.agent_id)
        return self._rules.of("" if agent is None else agent.agent_class), requests.unseal(parked.request).owner

    def _can_still(self, tx: Tx, answered: Challenge) -> bool:
        """Whether enough may yet approve: if not, the others need not answer any more."""
        rule, owner_id = self.rule_of(tx, answered)
        try:
            rule.is_reached(owner_id, [(one.owner_id, state_of(one, tx.now)) for one in rows.by_rqh(tx, answered.rqh)])
        except (BindingError, IdentityError):
            return False
        return True

    def _check_may_ask(self, tx: Tx, made: Challenge) -> None:
        owner = owners.by_identifier(tx, made.owner_id)
        if owner is None or owner.state != owners.ACTIVE:
            raise OwnerNotActive("an owner who must be asked is not active")
        allowed = owners.allowed_proxies(tx, made.owner_id)
        if allowed is not None and made.proxy_id not in allowed:
            raise ProxyNotAllowed("this proxy may not submit for this owner")
        denied = rows.last_denial(tx, made.agent_id, made.owner_id)
        if denied is not None:
            wait = denied + timedelta(seconds=self._settings.denial_mute_seconds) - tx.now
            if wait > timedelta():
                raise AgentMuted(
                    "the owner has just said no to this agent", retry_after_seconds=int(wait.total_seconds()) + 1
                )
        if rows.count_waiting(tx, made.owner_id) >= self._settings.challenges_per_owner:
            raise ChallengesFull("this owner has too many questions to answer", retry_after_seconds=FULL_RETRY_SECONDS)

    def _check(self, found: Challenge, token: str) -> bool:
        """Whether a good answer is a no; the one path of every model's approvals."""
        sealed = approvals.read(token)
        approver = self._store.read_sync(lambda tx: self._registry.approver(tx, sealed))
        try:
            approvals.check(
                sealed,
                requests.unseal(found.request),
                approver.owner,
                server_id=self._server_id,
                proxy_id=found.proxy_id,
                now=self._clock.now(),
                limits=self._limits,
                nonce=found.nonce,
                signer_is_agent=approver.is_agent,
                beside=found.owner_id,
            )
        except ApprovalDenied:  # raised last of all: the signature and everything else about it is good
            return True
        return False

    async def _note_refusal(
        self, caller: OwnerCaller, found: Challenge, token: str, reason: str, request_id: str
    ) -> None:
        fields = {"txn": found.txn, "challenge": found.id, "approval_s256": jws.s256(token)}
        event = AuditEvent(
            "owner-answered", caller.actor, found.owner_id, outcome="refused", reason=reason, request_id=request_id,
            fields=fields,
        )  # fmt: skip
        await self._store.write(lambda tx: audit.append(tx, event))

    def _on_events(self, events: list[OutboxRow]) -> None:
        for event in events:
            if event.topic == rows.TOPIC:
                for told in self._calls.get(str(event.body.get("owner_id")), ()):
                    told.set()


def _check_other_key(tx: Tx, asked: Challenge, kid: str) -> None:
    """Refuses (ApproversNotDistinct) the yes of a key that has said yes to this request at another place."""
    for other in rows.by_rqh(tx, asked.rqh):
        is_yes = other.id != asked.id and other.state == rows.APPROVED and other.answer is not None
        if is_yes and approvals.kid_of(other.answer or "") == kid:
            raise ApproversNotDistinct("this key has approved the request already")


def _told(found: Challenge, *, is_denial: bool) -> Mapping[str, Any]:
    return {"challenge": found.id, "decision": "deny" if is_denial else "approve", "txn": found.txn}
