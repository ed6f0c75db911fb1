"""Deciding: the owner's rules take what waits in fair turns; a person takes what they leave.

Both look at the request's own bytes (`appliance.owner.review`), and what they sign is what they looked at. A decision
is in the queue's file before anybody acts on it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from appliance.binding import composite, jws
from appliance.clock import Clock
from appliance.failpoint import failpoint
from appliance.owner.answer_policy import APPROVE, LEAVE, Asked, Verdict
from appliance.owner.errors import GatewayRequestOver
from appliance.owner.gateway.domains import Domain
from appliance.owner.gateway.fair import FairQueue
from appliance.owner.gateway.queue import PERSON, POLICY, Entry, Made, Queue
from appliance.owner.gateway.states import QueueEvent, QueueState, at_time, step
from appliance.owner.review import ReviewCard, review
from appliance.owner.sign import sign
from est.errors import Refusal
from est.signer import Signer

log = logging.getLogger(__name__)

AT_ONCE = 16
"""Decisions in one transaction."""


@dataclass(frozen=True, slots=True)
class Settled:
    """A request after a decision."""

    entry: Entry
    state: QueueState


def seconds_of(clock: Clock) -> int:
    """Now, in whole seconds since 1970."""
    return int(clock.now().timestamp())


def state_of(entry: Entry, now: int) -> QueueState:
    """Where a request stands at this moment."""
    return at_time(entry.state, is_over=entry.expires <= now)


def card_of(entry: Entry, clock: Clock) -> ReviewCard:
    """The request's own bytes as a person is shown them; raises what `review` raises."""
    return review(
        entry.request,
        owner_id=entry.owner,
        now=clock.now(),
        csr_der=entry.csr,
        server_id=entry.server,
        proxy=entry.proxy,
    )


def approve(
    entry: Entry, signer: Signer, clock: Clock, *, org: tuple[str, ...], code: str | None = None, deny: bool = False
) -> str:
    """The owner's signed yes or no to exactly this request, through its proxy, with this material.

    Raises what `review` and `sign` raise.
    """
    material = composite.org_hash(org)
    return sign(card_of(entry, clock), signer, now=clock.now(), expected_code=code, deny=deny, org=material)


def by_person(
    queue: Queue, entry: Entry, signer: Signer, clock: Clock, *, deny: bool, code: str | None, org: tuple[str, ...]
) -> QueueState:
    """A person's decision, signed and kept; the state it led to.

    Raises GatewayRequestOver when the request does not wait any more, and what `review` and `sign` raise.
    """
    now = seconds_of(clock)
    was = state_of(entry, now)
    if was is QueueState.QUEUED:  # a person may be quicker than the rules, or there are none any more
        was = step(was, QueueEvent.NO_RULE_FITS)
    after = step(was, QueueEvent.PERSON_DENIED if deny else QueueEvent.PERSON_APPROVED)
    token = approve(entry, signer, clock, org=() if deny else org, code=code, deny=deny)
    made = Made(
        entry.rqh, entry.state, after, PERSON, "", "denied by hand" if deny else "approved by hand", token,
        jws.s256(token), () if deny else org,
    )  # fmt: skip
    if queue.decide([made], now) != [True]:
        raise GatewayRequestOver("the request was decided or ended meanwhile")
    return after


class Rules:
    """The policy engine: one task that takes queued requests in fair turns and decides them, some at a time."""

    def __init__(self, queue: Queue, domains: dict[str, Domain], clock: Clock) -> None:
        self._queue = queue
        self._domains = domains
        self._clock = clock
        self._turns: FairQueue[Entry] = FairQueue()
        self._wake = asyncio.Event()
        self._settled: dict[str, set[asyncio.Future[None]]] = {}
        for entry in queue.waiting(QueueState.QUEUED, seconds_of(clock)):
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """A request waits for the rules."""
        self._turns.push(entry.proxy, entry, urgent=entry.is_urgent)
        self._wake.set()

    async def settled(self, rqh: str, seconds: float) -> None:
        """Until this request has been looked at, at most so long."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settled.setdefault(rqh, set()).add(mine)
        try:
            async with asyncio.timeout(seconds):
                await mine
        except TimeoutError:
            pass
        finally:
            waiting = self._settled.get(rqh, set())
            waiting.discard(mine)
            if not waiting:
                self._settled.pop(rqh, None)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while len(self._turns):
                taken = [one for _ in range(AT_ONCE) if (one := self._turns.pop()) is not None]
                await asyncio.to_thread(self._decide, taken)
                for entry in taken:
                    for waiting in self._settled.pop(entry.rqh, ()):
                        if not waiting.done():
                            waiting.set_result(None)

    def _decide(self, taken: list[Entry]) -> None:
        now = seconds_of(self._clock)
        spent: dict[tuple[str, str | None], int] = {}

        def decided(rule: str, agent: str | None) -> int:
            return self._queue.decided(rule, agent, now) + spent.get((rule, agent), 0)

        made = []
        for entry in taken:
            one = self._judge(entry, decided)
            made.append(one)
            for key in ((one.rule, None), (one.rule, entry.agent)):
                spent[key] = spent.get(key, 0) + 1
        failpoint("gateway-signed")
        self._queue.decide(made, now)
        failpoint("gateway-decided")

    def _judge(self, entry: Entry, decided: object) -> Made:
        """What the rules make of one request; whatever is wrong with it is left to the person, with the reason."""
        left = step(QueueState.QUEUED, QueueEvent.NO_RULE_FITS)
        domain = self._domains.get(entry.domain)
        policy = None if domain is None else domain.policy
        if domain is None or policy is None or domain.signer is None:
            return Made(entry.rqh, QueueState.QUEUED, left, POLICY, "", "there are no rules")
        try:
            card = card_of(entry, self._clock)
            request = card.request
            asked = Asked(
                request.sub, entry.proxy, request.purpose, request.profiles, request.ttl, entry.executable, entry.uid
            )
            verdict: Verdict = policy.judge(asked, decided)  # type: ignore[arg-type]
            if verdict.answer == LEAVE:
                return Made(entry.rqh, QueueState.QUEUED, left, POLICY, verdict.rule, verdict.why)
            is_yes = verdict.answer == APPROVE
            org = domain.config.org if is_yes else ()
            token = approve(entry, domain.signer, self._clock, org=org, deny=not is_yes)
        except Refusal as refusal:
            log.info("event=rules-left-it rqh=%s reason=%s", entry.rqh, refusal.reason)
            return Made(entry.rqh, QueueState.QUEUED, left, POLICY, "", refusal.reason)
        after = step(QueueState.QUEUED, QueueEvent.RULE_APPROVED if is_yes else QueueEvent.RULE_DENIED)
        return Made(entry.rqh, QueueState.QUEUED, after, POLICY, verdict.rule, verdict.why, token, jws.s256(token), org)
