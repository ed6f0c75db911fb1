"""Answering challenges: fetch, verify, show, decide, sign, hand in.

The server's signature is verified before anything is shown, and the request's own bytes are what is shown. There is no
default answer: whoever says nothing leaves the challenge to run out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from appliance.binding import challenge as challenges
from appliance.binding import request as requests
from appliance.binding.challenge import BindingChallenge
from appliance.binding.facts import SERVER_MEDIATED_SECONDS, Limits, Model
from appliance.binding.webauthn import Authenticator
from appliance.clock import Clock
from appliance.owner.answer_policy import APPROVE, DENY, LEAVE
from appliance.owner.client import OwnerClient, Question, Server
from appliance.owner.errors import ServerUnreachable
from appliance.owner.review import ReviewCard, review
from appliance.owner.sign import sign
from est.errors import Refusal
from est.signer import Signer

PAUSE_SECONDS = 2.0
WAIT_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Decision:
    """What the owner says to one card; `code` is the short code that was typed, None where a policy decided."""

    answer: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One event for whoever watches: what was answered or refused, by the owner's side or the server's."""

    challenge: str
    agent: str
    decision: str
    code: str = ""
    refused: str = ""


Decide = Callable[[ReviewCard, BindingChallenge], Awaitable[Decision]]
Tell = Callable[[Answered], None]


class Responder:
    """One owner's tool at one server."""

    def __init__(
        self,
        client: OwnerClient,
        server: Server,
        signer: Signer | Authenticator,
        owner_id: str,
        clock: Clock,
        decide: Decide,
    ) -> None:
        self._client = client
        self._server = server
        self._signer = signer
        self._owner_id = owner_id
        self._clock = clock
        self._decide = decide
        self._limits = Limits().of(Model.SERVER_MEDIATED)
        self._seen: set[str] = set()
        self._said_yes: set[str] = set()

    async def run(self, tell: Tell, *, once: bool = False, wait_seconds: float = WAIT_SECONDS) -> None:
        """Answer what comes until cancelled; with `once`, what waits or comes within the wait.

        A server that is away is asked again, without `once`.
        """
        while True:
            try:
                found = await self._client.questions(wait_seconds)
                for question in found:
                    if question.id not in self._seen:
                        tell(await self._answer(question))
            except ServerUnreachable:
                if once:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if once:
                return
            if any(question.id in self._seen for question in found):
                await asyncio.sleep(PAUSE_SECONDS)  # what was left unanswered keeps the long poll from waiting

    async def _answer(self, question: Question) -> Answered:
        """Whatever is wrong with one challenge is told and keeps no other from its answer."""
        agent = ""
        try:
            challenge, card = self.card(question)
            agent = card.request.sub
            if challenge.rqh in self._said_yes:
                # the server wants another key of this owner as well, and a key counts once
                self._seen.add(question.id)
                return Answered(question.id, agent, LEAVE, card.short_code)
            decision = await self._decide(card, challenge)
            if decision.answer not in (APPROVE, DENY):
                self._seen.add(question.id)
                return Answered(question.id, agent, LEAVE, card.short_code)
            token = self.sign(card, challenge, decision)
            # a server that is away between fetching and answering gets the same answer when it is back
            said = await self._hand_in(question, token)
            self._seen.add(question.id)
            if said == APPROVE:
                self._said_yes.add(challenge.rqh)
            return Answered(question.id, agent, said, card.short_code)
        except ServerUnreachable:
            raise
        except Refusal as refusal:
            self._seen.add(question.id)
            reason = str(refusal.fields.get("problem") or refusal.reason)
            return Answered(question.id, agent, LEAVE, refused=reason)

    def card(self, question: Question) -> tuple[BindingChallenge, ReviewCard]:
        """The challenge verified, and the request's own bytes as a card that names the proxy.

        Raises what `challenge.unseal` and `challenge.check` raise, and what `review` raises.
        """
        now = self._clock.now()
        challenge = challenges.unseal(question.challenge, self._server.key)
        asked = requests.unseal(question.request)
        card = review(
            question.request,
            owner_id=self._owner_id,
            now=now,
            csr_der=question.csr_der,
            server_id=self._server.server_id,
            proxy=challenge.proxy,
            limits=Limits().of(asked.model),
            beside=asked.owner,
        )
        challenges.check(challenge, card.request, owner_id=self._owner_id, server_id=self._server.server_id, now=now)
        return challenge, card

    def sign(self, card: ReviewCard, challenge: BindingChallenge, decision: Decision) -> str:
        """The signed answer: this request through this proxy, with the challenge's nonce. Raises what `sign` raises."""
        return sign(
            card,
            self._signer,
            now=self._clock.now(),
            deny=decision.answer == DENY,
            usable_seconds=SERVER_MEDIATED_SECONDS,
            expected_code=decision.code,
            nonce=challenge.nonce,
            limits=self._limits,
        )

    async def _hand_in(self, question: Question, token: str) -> str:
        for pause in (0.5, 1.0, 2.0, 4.0):
            try:
                return await self._client.answer(question, token)
            except ServerUnreachable:
                await asyncio.sleep(pause)
        return await self._client.answer(question, token)
