"""EST for proxies: CA certificates, enrolment, renewal, keys made here (RFC 7030, section 4; RFC 8995, section 5.9).

Each operation reads: who asks, what is asked, may these names be asked for, issue once, answer. Who may have a
certificate is in applicants and authorities, how one is issued in est_issuing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from appliance.ca import CertificateAuthority
from appliance.clock import Clock
from appliance.errors import CertificateRequired, NotPermitted, RateLimited
from appliance.registrar.admission import ProxyIdentities
from appliance.registrar.applicants import Applicant, PledgeApplicant, RenewalApplicant
from appliance.registrar.authorities import Authorities, Authority, EnrolmentFor, RenewalFor, proxy_to_renew
from appliance.registrar.caller import Caller, caller_of
from appliance.registrar.errors import AuthorityNotWanted
from appliance.registrar.est_callers import EstCallers
from appliance.registrar.est_issuing import LdevidIssuer, Wish
from appliance.registrar.est_policy import EstPolicy
from appliance.registrar.est_refusals import EstRefusals
from appliance.registrar.ldevids import ROLE, Ldevids
from appliance.registrar.server_keys import ServerKeys
from appliance.registrar.turns import Turns
from appliance.store.store import Store
from appliance.web.limits import Bucket, Gcra
from appliance.web.peer import Peer
from est import paths
from est.csr import Csr
from est.errors import OperationUnknown, Refusal
from est.exchange import Call, Reply
from est.server import EstServer


class EstService:
    """The EST endpoints, with their collaborators."""

    def __init__(
        self,
        *,
        origin: str,
        policies: Mapping[str, EstPolicy],
        max_ldevids: int,
        store: Store,
        clock: Clock,
        ca: CertificateAuthority,
        ldevids: Ldevids,
        callers: EstCallers,
        identities: ProxyIdentities,
        authorities: Authorities,
        server_keys: ServerKeys,
        refusals: EstRefusals,
        turns: Turns,
        never_granted: Collection[str] = (),
        wraps: bool | None = None,
    ) -> None:
        """`never_granted` are extensions that a request is refused for, by dotted type; `wraps` as EstServer has it."""
        self._origin = origin
        self._policies = policies
        self._max_ldevids = max_ldevids
        self._store = store
        self._clock = clock
        self._ca = ca
        self._ldevids = ldevids
        self._callers = callers
        self._identities = identities
        self._authorities = authorities
        self._server_keys = server_keys
        self._refusals = refusals
        self._turns = turns
        self._issuer = LdevidIssuer(store, ca)
        self._rates = {
            label: Gcra(Bucket(policy.rules.requests_per_second, policy.rules.requests_burst))
            for label, policy in policies.items()
            if policy.rules.requests_per_second
        }
        makes_keys = [label or None for label, policy in policies.items() if policy.makes_keys]
        labels = [label for label in policies if label]
        self._est = EstServer(labels=labels, keygen=makes_keys, never=never_granted, wraps=wraps)

    async def cacerts(self, call: Call, peer: Peer) -> Reply:
        """The root and the CA that issues LDevIDs (RFC 7030, section 4.1); nobody has to authenticate.

        While a CA is rolled over also its other generation, the other root, and the links between the two roots.
        """
        self._est.operation(call)
        return self._est.cacerts_reply(self._ca.handed_out(ROLE), call)

    async def csrattrs(self, call: Call, peer: Peer) -> Reply:
        """What the caller's CSR must have (RFC 7030, section 4.5); nobody has to authenticate.

        Raises EnrollmentSecretInvalid (401) for credentials that are wrong.
        """
        policy = self._policies[self._est.operation(call).label or ""]
        caller = caller_of(call, peer)
        try:
            wanted = await self._callers.attributes(call.headers.get("authorization", ""), peer, caller, policy)
        except Refusal as refusal:
            await self._refusals.note(refusal, call, caller, is_known=False)
            raise
        return self._est.csrattrs_reply(wanted)

    async def fullcmc(self, call: Call, peer: Peer) -> Reply:
        """Not offered (RFC 7030, section 4.3): raises OperationUnknown, which says what is, or LabelUnknown."""
        self._est.operation(call)
        raise OperationUnknown("fullcmc is not offered")

    async def simpleenroll(self, call: Call, peer: Peer) -> Reply:
        """The first certificate: for a pledge after BRSKI, or against a one-time secret (RFC 7030, section 4.2.1).

        Raises EnrollmentCredentialsMissing and EnrollmentSecretInvalid (401), EnrollmentNotOpen, EnrolledAlready,
        ProxyRevoked, NamesNotJustified, CsrAttributeMissing, KeyInUse, HistoryUnjudged, AuthorityNotWanted, and what
        the label's policy, EstServer.read_enroll and the CA raise.
        """
        return await self._answer(call, peer)

    async def simplereenroll(self, call: Call, peer: Peer) -> Reply:
        """A new certificate for a proxy that shows a live one (RFC 7030, section 4.2.2; E-117, E-118).

        Raises CertificateRequired, LdevidNotAccepted, ProxyRevoked, NamesChanged, KeyInUse, TooManyLdevids,
        AuthorityNotWanted, and what the label's policy, EstServer.read_enroll and the CA raise.
        """
        return await self._answer(call, peer)

    async def serverkeygen(self, call: Call, peer: Peer) -> Reply:
        """A key pair and its certificate, for whoever may enrol or renew (RFC 7030, section 4.4).

        Raises what those raise, OperationUnknown where the label makes no keys, DecryptKeyUnknown, EncryptionRequired.
        """
        return await self._answer(call, peer)

    async def _answer(self, call: Call, peer: Peer) -> Reply:
        operation = self._est.operation(call)
        policy = self._policies[operation.label or ""]
        caller = caller_of(call, peer)
        known: list[Applicant | Authority] = []
        try:
            self._take_turn(policy)
            if operation.name == paths.SERVERKEYGEN:
                return await self._make_key(call, peer, caller, policy, known)
            return await self._enroll(call, peer, caller, policy, operation.name, known)
        except Refusal as refusal:
            await self._refusals.note(refusal, call, caller, is_known=bool(known))
            raise

    def _take_turn(self, policy: EstPolicy) -> None:
        """The label's own limit, before anything costs a signature (E-203)."""
        rate = self._rates.get(policy.label)
        wait = rate.take("", self._clock.monotonic()) if rate is not None else 0.0
        if wait:
            raise RateLimited("too many requests under this EST label", retry_after_seconds=max(1, round(wait + 0.5)))

    async def _enroll(
        self,
        call: Call,
        peer: Peer,
        caller: Caller,
        policy: EstPolicy,
        operation: str,
        known: list[Applicant | Authority],
    ) -> Reply:
        authority = await self._authorities.find(peer) if not call.headers.get("authorization") else None
        if authority is not None:
            known.append(authority)
            ask = self._est.read_enroll(call)
            applicant = await self._for_another(authority, ask.csr, caller, policy, operation)
        else:
            applicant = await self._applicant(call, peer, caller, policy, renews=operation == paths.SIMPLEREENROLL)
            known.append(applicant)
            ask = self._est.read_enroll(call)
        linked = policy.check(applicant, ask.csr, peer)
        subject = policy.renamed(ask.csr, applicant.identifier)
        wish = Wish(ask.csr, policy, operation, caller, ask.csr, subject, facts={"linked": linked})
        async with self._turns.of(applicant.proxy_id):
            issued = await self._issuer.issue(applicant, wish)
        if issued is None:
            return self._est.pending_reply(policy.rules.approval_retry_seconds)
        return self._est.enroll_reply(issued.der, ask)

    async def _make_key(
        self, call: Call, peer: Peer, caller: Caller, policy: EstPolicy, known: list[Applicant | Authority]
    ) -> Reply:
        """A request that waits gets a key when it is approved, so what waits is known by the client's placeholder.

        Nothing is kept to answer a repeated request with: it gets another key, or no.
        """
        renews = await self._ldevids.find(peer) is not None and not call.headers.get("authorization")
        applicant = await self._applicant(call, peer, caller, policy, renews=renews)
        known.append(applicant)
        ask = self._est.read_keygen(call)
        recipient = self._server_keys.recipient(ask, peer, policy)
        if isinstance(applicant, PledgeApplicant):
            applicant = replace(applicant, makes_key=False)
        key = await self._server_keys.make(policy.rules.serverkeygen_key)
        csr = ask.csr.with_key(key.public_key())
        # its signature proves nothing, so a binding in it is checked but links nothing (RFC 7030, section 4.4.1)
        policy.check(applicant, csr, peer)
        subject = policy.renamed(csr, applicant.identifier)
        returned = "plain" if recipient is None else "symmetric" if ask.shared is not None else "asymmetric"
        wish = Wish(
            csr,
            policy,
            paths.SERVERKEYGEN,
            caller,
            csr._replace(key_sha256=ask.csr.key_sha256),
            subject,
            is_repeatable=False,
            facts={"linked": False, "made_key": returned},
        )
        async with self._turns.of(applicant.proxy_id):
            issued = await self._issuer.issue(applicant, wish)
        if issued is None:
            return self._est.pending_reply(policy.rules.approval_retry_seconds)
        return self._server_keys.reply(key, issued.certificate, recipient, wrapped=ask.wrapped)

    async def _applicant(self, call: Call, peer: Peer, caller: Caller, policy: EstPolicy, *, renews: bool) -> Applicant:
        """Who asks for itself."""
        if renews:
            if peer.certificate is None:
                raise CertificateRequired("renewal needs the certificate to be renewed as TLS client certificate")
            live = await self._ldevids.seen(peer)
            if live is None:
                raise NotPermitted("renewal needs a certificate that this domain issued to an identity proxy")
            return RenewalApplicant(live, self._est, caller, self._max_ldevids)
        authorization = call.headers.get("authorization", "")
        if authorization:
            return await self._callers.secret_holder(authorization, caller, policy)
        return await self._callers.pledge(peer, caller, policy)

    async def _for_another(
        self, authority: Authority, csr: Csr, caller: Caller, policy: EstPolicy, operation: str
    ) -> Applicant:
        """Who is asked for by a registration authority."""
        if not policy.rules.authorities:
            raise AuthorityNotWanted("registration authorities do not ask under this EST label")
        if operation == paths.SIMPLEENROLL:
            return EnrolmentFor(authority, csr, self._identities, self._origin, caller, policy.label)
        proxy, certificate = await self._store.read(partial(proxy_to_renew, csr, policy.label))
        return RenewalFor(authority, proxy, certificate, self._est, caller, self._max_ldevids)
