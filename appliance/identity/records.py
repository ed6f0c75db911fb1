"""What the store knows about a request, read at one moment, and what a yes writes, in one transaction.

Facts are gathered before anything is decided. When the decision is yes, everything that may have changed meanwhile is
asked again inside the transaction that spends the nonce, the request and the approvals (agent identity, section 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from appliance import audit
from appliance.audit import Actor, AuditEvent
from appliance.binding import jws, renewal
from appliance.binding.approval import OwnerApproval
from appliance.binding.approval import read as read_approval
from appliance.binding.ear import Tier
from appliance.binding.errors import (
    ApprovalSpent,
    KeyReused,
    Malformed,
    NonceSpent,
    OwnerNotActive,
    PasskeyCounterWentBack,
    StandingApprovalUnknown,
    StandingApprovalUsedUp,
    StandingApprovalWithdrawn,
    StandingReferenceMismatch,
)
from appliance.binding.facts import Model, NonceRecord, OwnerKey, OwnerRecord
from appliance.binding.jws import Sealed
from appliance.binding.request import AgentRequest
from appliance.binding.request import unseal as unseal_request
from appliance.binding.standing import StandingApproval
from appliance.binding.webauthn import Passkey
from appliance.ca import revoke as revoke_certificate
from appliance.errors import Conflict
from appliance.identity.errors import (
    AgentRevoked,
    AgentSuspended,
    AgentUnknown,
    ProxyNotActive,
    RequestReplayed,
    SubmitterNotLive,
)
from appliance.identity.issue import Grant
from appliance.identity.models import Approver, Seat
from appliance.identity.submitter import Submitter
from appliance.identity.withdrawn import is_withdrawn
from appliance.store import (
    agents,
    certificates,
    challenges,
    deciding,
    further_approvals,
    nonces,
    org_material,
    owners,
    proxies,
    requests,
    standing_approvals,
)
from appliance.store.agents import Agent
from appliance.store.deciding import RequestRow
from appliance.store.requests import Request
from appliance.store.standing import is_approver, standing
from appliance.store.standing_approvals import StandingRow
from appliance.store.transaction import Tx
from est.chains import read_certificate
from est.keys import is_ec, public_key_of, read_spki

KEPT_AFTER_EXPIRY = timedelta(days=2)
"""How long a spent token identifier is remembered after it expired, so that a clock that goes back finds it."""


class RequestFacts(NamedTuple):
    """Everything that the store knows and a decision needs."""

    earlier: Request | None
    nonce: NonceRecord | None
    agent: Agent | None
    key_holder: str | None
    live_key: ec.EllipticCurvePublicKey | None
    approvers: tuple[Approver, ...]
    """Of the approvals that came along, or to which a renewal refers."""
    seats: tuple[Seat, ...] = ()
    """Who was asked about the request, if it is parked."""


class Registry:
    """Reads what decisions rest on."""

    def __init__(self, own_keys: Callable[[], frozenset[bytes]]) -> None:
        """`own_keys`: SPKI SHA-256 of the server's own keys (CAs, verifier, WIT), which no agent may have (A-1)."""
        self._own_keys = own_keys

    def gather(self, tx: Tx, request: AgentRequest, approvals: Sequence[Sealed]) -> RequestFacts:
        """Facts about a request and the keys that its approvals name.

        Raises StandingReferenceMismatch, StandingApprovalUnknown, StandingApprovalWithdrawn.
        """
        is_asked = request.model is not Model.AGENT_MEDIATED and not request.standing
        parked = challenges.by_rqh(tx, request.rqh) if is_asked else []
        if request.standing:
            approvals = _referred(tx, request, approvals)
        row = deciding.request(
            tx,
            rqh=request.rqh,
            nonce=request.nonce,
            sub=request.sub,
            jkt=request.jkt,
            spki_sha256=request.key_sha256,
        )
        nonce = row.nonce
        live_key = _live_key(tx, request) if request.purpose == "renew" else None
        return RequestFacts(
            earlier=requests.get(tx, request.rqh) if row.is_known else None,
            nonce=None
            if nonce is None
            else NonceRecord(
                nonce.nonce,
                nonce.jkt,
                nonce.purpose,
                nonce.agent_id,
                nonce.proxy_id,
                nonce.expires_at,
                nonce.spent_at is not None,
            ),
            agent=row.agent,
            key_holder=self._key_holder(row, request, live_key),
            live_key=live_key,
            approvers=tuple(self.approver(tx, one) for one in approvals),
            seats=tuple(
                Seat(one, None if one.answer is None else self.approver(tx, read_approval(one.answer)))
                for one in parked
            ),
        )

    def approver(self, tx: Tx, approval: Sealed) -> Approver:
        """The owner who has the key that an approval names, with this key alone."""
        kid = approval.kid
        if kid is None:
            raise Malformed("the approval has no kid", object="approval")
        row, is_agent = deciding.approver(tx, kid)
        if row is None:
            return Approver(approval, None, is_agent)
        passkey = None if row.rp_id is None or row.origin is None else Passkey(row.rp_id, row.origin)
        public = read_spki(row.spki)
        assert is_ec(public)  # possession statements bring no others
        key = OwnerKey(kid, public, row.key_state, row.protection, row.not_before, row.not_after, passkey)
        return Approver(approval, OwnerRecord(row.owner_id, (key,), row.state, row.kind, row.proxies), is_agent)

    def _key_holder(
        self, row: RequestRow, request: AgentRequest, live_key: ec.EllipticCurvePublicKey | None
    ) -> str | None:
        """Who has the agent's key already, in words; None: nobody (A-1)."""
        if request.key_sha256 in self._own_keys():
            return "this server"
        if row.is_owners:
            return "an owner"
        if live_key is not None and live_key == request.key:
            return "the credential to be renewed"
        if row.is_certified:
            return "a device or server"
        return "another agent" if row.is_agents else None


def check_agent(agent: Agent | None, submitter: Submitter) -> Agent:
    """The agent, if it stands behind this proxy and is in force; raises AgentUnknown, AgentRevoked, AgentSuspended."""
    if agent is None or agent.proxy_id != submitter.proxy_id:
        raise AgentUnknown("no such agent stands behind this proxy")
    if agent.state == agents.REVOKED:
        raise AgentRevoked("the agent is revoked")
    if agent.state == agents.SUSPENDED:
        raise AgentSuspended("the agent is suspended")
    return agent


def spend(tx: Tx, grant: Grant, agent: Agent, submitter: Submitter, certificate_row: int | None) -> None:
    """Spend nonce, request and approvals, register the agent and keep the request, if everything still stands.

    `certificate_row` is the pending certificate, None for a WIT alone.

    This is the one transaction that writes the pending row, so a human's signature is never spent for nothing. Raises
    ApprovalSpent, StandingApproval..., NonceSpent, RequestReplayed, OwnerNotActive, KeyReused, AgentUnknown,
    AgentRevoked, SubmitterNotLive, ProxyNotActive, Conflict: then nothing is spent.
    """
    request = grant.request
    owner_id = None if grant.owner is None else grant.owner.owner_id
    row = Request(
        rqh=request.rqh,
        txn=grant.txn,
        agent_id=request.sub,
        owner_id=owner_id,
        proxy_id=grant.proxy_id,
        state=requests.PENDING,
        result=None,
        request=request.token,
        approval=_approvals(grant),
        evidence=grant.evidence,
        ear=grant.ear,
        created_at=tx.now,
        updated_at=tx.now,
    )
    try:
        requests.add(tx, row)
    except Conflict as cause:
        raise ApprovalSpent("this request was decided before", rqh=request.rqh) from cause
    for one in grant.standing:
        record_standing(tx, one, submitter.actor, "")
    _check_still_stands(tx, grant, agent, submitter)
    if not nonces.spend(tx, request.nonce):
        raise NonceSpent("the nonce was used before")
    kept = timedelta(seconds=request.exp - request.iat) + KEPT_AFTER_EXPIRY
    if not nonces.spend_id(tx, "request", f"{request.sub} {request.jti}", tx.now + kept):
        raise RequestReplayed("the request's jti was used before")
    for approval in grant.approvals:
        if isinstance(approval, StandingApproval):
            if not standing_approvals.use(tx, approval.s256):
                raise StandingApprovalUsedUp("the standing approval may not be used again", limit=approval.max_uses)
        else:
            count_signature(tx, approval)
            kept = timedelta(seconds=approval.exp - approval.iat) + KEPT_AFTER_EXPIRY
            if not nonces.spend_id(tx, "approval", f"{approval.iss} {approval.jti}", tx.now + kept):
                raise ApprovalSpent("this approval was used before")
    _keep_further(tx, grant, certificate_row)
    if grant.seats:
        if not all(challenges.spend(tx, one) for one in grant.seats):
            raise ApprovalSpent("an approver's answer was used before")
        challenges.close(tx, request.rqh)
    elif grant.model is Model.SERVER_MEDIATED:
        raise ValueError("in the server-mediated model somebody was asked")
    if grant.org:
        org_material.add(tx, request.rqh, grant.org)
    agents.register(tx, agent, owner_id=owner_id, jkt=request.jkt)


def take_up(
    tx: Tx, row: Request, grant: Grant, agent: Agent, submitter: Submitter, certificate_row: int | None
) -> None:
    """Take up a request whose yes is on record and whose credential was never finished.

    What was about to be signed for it may exist somewhere: it is revoked, unlike `certificate_row`, which is about to
    be signed now. Raises as spend(), for what has changed, and ApprovalSpent for approvals other than those on record:
    nobody has spent or audited them.
    """
    if row.approval != _approvals(grant):
        raise ApprovalSpent("this request was decided with other approvals", rqh=row.rqh)
    requests.take(tx, row, evidence=grant.evidence, ear=grant.ear)
    _check_still_stands(tx, grant, agent, submitter)
    _keep_further(tx, grant, certificate_row)
    for orphan in certificates.live(tx, "agent_id", row.agent_id, tx.now):
        if orphan.state == certificates.PENDING and orphan.txn == row.txn and orphan.id != certificate_row:
            revoke_certificate(
                tx, orphan.issuer_aki, int(orphan.serial, 16), reason="superseded", actor=submitter.actor
            )


def tell_decision(tx: Tx, grant: Grant, agent: Agent, actor: Actor, request_id: str) -> None:
    """The audit entries of a yes: who asked for what, who approved, whom it registered."""

    def tell(event: str, what: str, fields: Mapping[str, Any]) -> None:
        audit.append(tx, AuditEvent(event, actor, what, request_id=request_id, fields={"txn": grant.txn, **fields}))

    tell("agent-request-received", grant.request.sub, grant.hashes)
    for approval, digest in zip(grant.approvals, grant.approvals_s256, strict=True):
        approved = {"agent": approval.sub, "rqh": grant.request.rqh, "approval_s256": digest}
        if isinstance(approval, StandingApproval):
            row = standing_approvals.get(tx, digest)
            uses = 0 if row is None else row.uses
            tell("standing-approval-used", approval.iss, {**approved, "kid": approval.kid, "uses": uses})
            continue
        tell("owner-approved", approval.iss, {**approved, "kid": approval.kid})
    if agent.state != agents.REGISTERED:
        tell("agent-registered", agent.identifier, {"owner": grant.request.owner, "proxy": grant.proxy_id})


def tell_appraisal(tx: Tx, grant: Grant, tier: Tier, actor: Actor, request_id: str) -> None:
    """The audit entry of an appraisal."""
    hashes = grant.hashes
    fields = {name: hashes[name] for name in ("txn", "evidence_s256", "ear_s256")}
    event = AuditEvent(
        "evidence-appraised", actor, grant.request.sub, request_id=request_id, fields={**fields, "tier": str(tier)}
    )
    audit.append(tx, event)


def _keep_further(tx: Tx, grant: Grant, certificate_row: int | None) -> None:
    """Keep who approved this certificate beside the agent's own owner: it falls with each of them."""
    if certificate_row is None:
        return
    for approval in grant.approvals:
        if approval.iss != grant.request.owner:
            further_approvals.add(tx, certificate_row, approval.iss, approval.kid)


def _approvals(grant: Grant) -> str:
    return " ".join(one.token for one in grant.approvals)


def _check_still_stands(tx: Tx, grant: Grant, agent: Agent, submitter: Submitter) -> None:
    request = grant.request
    first, others = (grant.approvals[0], grant.approvals[1:]) if grant.approvals else (None, ())
    now = standing(
        tx,
        issuer_aki=submitter.issuer_aki,
        serial=submitter.serial,
        proxy_id=submitter.proxy_id,
        agent_id=agent.identifier,
        jkt=request.jkt,
        spki_sha256=request.key_sha256,
        at=tx.now,
        owner_id=None if first is None else first.iss,
        kid=None if first is None else first.kid,
    )
    if now.ldevid != certificates.ISSUED:
        raise SubmitterNotLive("the proxy's certificate was revoked meanwhile")
    if now.proxy != proxies.ACTIVE:
        raise ProxyNotActive("the proxy was revoked meanwhile")
    if now.agent is None:
        raise AgentUnknown("the agent's reservation was forgotten meanwhile")
    if now.agent == agents.REVOKED:
        raise AgentRevoked("the agent was revoked meanwhile")
    if now.agent == agents.SUSPENDED:
        raise AgentSuspended("the agent was suspended meanwhile")
    if now.owner_keys or now.other_agents:
        raise KeyReused("the agent's key has become somebody else's")
    if first is not None and not (now.is_approver and all(is_approver(tx, one.iss, one.kid) for one in others)):
        raise OwnerNotActive("this owner or its key is not active any more")
    for one in grant.standing:
        _check_not_withdrawn(tx, one)


def _live_key(tx: Tx, request: AgentRequest) -> ec.EllipticCurvePublicKey | None:
    """The key of an agent's live certificate that the renewal proof names; of the newest one, if it names none of them.

    A credential whose answer was lost on the way is live here and unknown to the agent, so any live one may vouch.
    """
    named = None if request.prev is None else renewal.kid_of(request.prev)
    newest = None
    for row in reversed(certificates.live(tx, "agent_id", request.sub, tx.now)):
        if row.state != certificates.ISSUED or row.der is None:
            continue
        key = public_key_of(read_certificate(row.der))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            continue
        if named in (None, jws.jkt(key)):
            return key
        newest = newest or key
    if newest is None:
        newest = _live_wit_key(tx, request.sub, named)
    return newest


def _live_wit_key(tx: Tx, agent_id: str, named: str | None) -> ec.EllipticCurvePublicKey | None:
    """The same for an agent that has WITs alone: of those there are no rows but their requests."""
    newest = None
    for row in requests.issued_to(tx, agent_id):
        result = row.result or {}
        is_live = result.get("serial") is None and datetime.fromisoformat(str(result["not_after"])) > tx.now
        if is_live and not is_withdrawn(tx, row):
            asked = unseal_request(row.request)
            if named in (None, asked.jkt):
                return asked.key
            newest = newest or asked.key
    return newest


def _referred(tx: Tx, request: AgentRequest, brought: Sequence[Sealed]) -> list[Sealed]:
    """The standing approvals to which a renewal refers, in its order: those that came along, the others on record."""
    here = {jws.s256(one.token): one for one in brought}
    if not here.keys() <= set(request.standing):
        raise StandingReferenceMismatch("an approval came along to which the request does not refer")
    found = []
    for s256 in request.standing:
        row = standing_approvals.get(tx, s256)
        if row is not None and row.state != standing_approvals.LIVE:
            raise StandingApprovalWithdrawn("the standing approval was withdrawn")
        if s256 not in here and row is None:
            raise StandingApprovalUnknown("no such standing approval came along or is on record")
        found.append(here[s256] if row is None else read_approval(row.token))
    return found


def record_standing(tx: Tx, approval: StandingApproval, actor: Actor, request_id: str) -> StandingRow:
    """The row of a standing approval that was checked, made if this is the first time; raises ApprovalSpent."""
    row = standing_approvals.get(tx, approval.s256)
    if row is not None:
        return row
    if standing_approvals.by_jti(tx, approval.iss, approval.jti) is not None:
        raise ApprovalSpent("another standing approval of this owner has the same jti")
    count_signature(tx, approval)
    made = StandingRow(
        s256=approval.s256,
        owner_id=approval.iss,
        agent_id=approval.sub,
        jti=approval.jti,
        kid=approval.kid,
        token=approval.token,
        state=standing_approvals.LIVE,
        uses=0,
        max_uses=approval.max_uses,
        expires_at=datetime.fromtimestamp(approval.exp, UTC),
        created_at=tx.now,
    )
    standing_approvals.add(tx, made)
    fields = {
        "approval_s256": approval.s256,
        "agent": approval.sub,
        "kid": approval.kid,
        "expires": approval.exp,
        "max_uses": approval.max_uses,
        "max_ttl": approval.ttl,
        "proxies": list(approval.proxies),
    }
    event = AuditEvent("standing-approval-recorded", actor, approval.iss, request_id=request_id, fields=fields)
    audit.append(tx, event)
    return made


def count_signature(tx: Tx, approval: OwnerApproval | StandingApproval) -> None:
    """Take note of a passkey's counter; raises PasskeyCounterWentBack if a copy of the key may be about."""
    if approval.sign_count is None:
        return
    if not owners.count_signature(tx, approval.kid, approval.sign_count, approval.iat):
        seen = owners.key(tx, approval.kid)
        raise PasskeyCounterWentBack(
            "the passkey's counter does not go with the time of its signature",
            seen=None if seen is None else seen.sign_count,
            found=approval.sign_count,
        )


def _check_not_withdrawn(tx: Tx, approval: StandingApproval) -> None:
    row = standing_approvals.get(tx, approval.s256)
    if row is None or row.state != standing_approvals.LIVE:
        raise StandingApprovalWithdrawn("the standing approval was withdrawn meanwhile")
