"""What approvers are asked: a challenge for each, with a nonce and an end of its own, ready to be parked.

Approvals that came along with the request take their place among the rows, as answers to no challenge.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.binding import approval as approvals
from appliance.binding import challenge as challenge_tokens
from appliance.binding import jws
from appliance.binding.approval import OwnerApproval
from appliance.binding.errors import RequestExpired
from appliance.binding.request import AgentRequest
from appliance.clock import Clock
from appliance.settings import IdentitySettings
from appliance.store import challenges as rows
from appliance.store import owners
from appliance.store.challenges import Challenge
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est.signer import Signer

NONCE_BYTES = 32


class Questions:
    """Makes the rows of a parked request."""

    def __init__(
        self, settings: IdentitySettings, *, server_id: str, store: Store, clock: Clock, signer: Signer
    ) -> None:
        self._settings = settings
        self._server_id = server_id
        self._store = store
        self._clock = clock
        self._signer = signer

    def about(
        self,
        request: AgentRequest,
        csr_der: bytes | None,
        approvers: Sequence[str],
        brought: Sequence[OwnerApproval],
        proxy_id: str,
    ) -> list[Challenge]:
        """A row for each approver: those whose approvals came along with these, the others with a challenge.

        Raises RequestExpired.
        """
        here = list(brought)
        now, txn, made = self._clock.now(), request.txn or str(uuid.uuid4()), []
        # an approval that came along must last as long as the others may take
        last = min([request.exp, *(one.exp for one in brought)])
        for seat, owner_id in enumerate(approvers):
            mine = next((one for one in here if one.iss == owner_id), None)
            if mine is not None:
                here.remove(mine)
            exp = last if mine is not None else min(int(now.timestamp()) + self._seconds_for(owner_id), last)
            if exp <= int(now.timestamp()):
                raise RequestExpired("no time is left to ask the owner in")
            made.append(self._one(request, csr_der, seat, owner_id, proxy_id, mine, txn, now, exp))
        return made

    def _one(
        self,
        request: AgentRequest,
        csr_der: bytes | None,
        seat: int,
        owner_id: str,
        proxy_id: str,
        brought: OwnerApproval | None,
        txn: str,
        now: datetime,
        exp: int,
    ) -> Challenge:
        nonce, challenge_id = secrets.token_urlsafe(NONCE_BYTES), new_challenge_id()
        iat = int(now.timestamp())
        token = None
        if brought is None:
            token = challenge_tokens.seal(
                self._signer, request, iss=self._server_id, owner=owner_id, proxy=proxy_id, iat=iat, exp=exp,
                jti=challenge_id, nonce=nonce,
            )  # fmt: skip
        return Challenge(
            id=challenge_id,
            rqh=request.rqh,
            seat=seat,
            txn=txn,
            owner_id=owner_id,
            agent_id=request.sub,
            proxy_id=proxy_id,
            nonce=nonce if brought is None else request.nonce,
            state=rows.WAITING if brought is None else rows.APPROVED,
            request=request.token,
            csr=csr_der,
            challenge=token,
            answer=None if brought is None else brought.token,
            created_at=now,
            expires_at=now + timedelta(seconds=exp - iat),
            updated_at=now,
        )

    def _seconds_for(self, owner_id: str) -> int:
        """How long this approver may take."""
        owner = self._store.read_sync(lambda tx: owners.by_identifier(tx, owner_id))
        is_policy = owner is not None and owner.kind == "policy"
        return self._settings.challenge_policy_seconds if is_policy else self._settings.challenge_seconds


def new_challenge_id() -> str:
    """A name for a row."""
    return secrets.token_urlsafe(16)


def tell_parked(tx: Tx, made: Challenge, actor: Actor, request_id: str) -> None:
    """The audit entry of a question, or of the answer that came along with the request."""
    fields: dict[str, object] = {"txn": made.txn, "challenge": made.id, "agent": made.agent_id}
    if made.challenge is not None:
        fields |= {
            "proxy": made.proxy_id,
            "rqh": made.rqh,
            "challenge_s256": jws.s256(made.challenge),
            "expires": int(made.expires_at.timestamp()),
        }
    elif made.answer is not None:
        fields |= {
            "rqh": made.rqh,
            "approval_s256": jws.s256(made.answer),
            "kid": approvals.kid_of(made.answer),
            "decision": "approve",
        }
    event = "owner-answered" if made.challenge is None else "owner-challenged"
    audit.append(tx, AuditEvent(event, actor, made.owner_id, request_id=request_id, fields=fields))
