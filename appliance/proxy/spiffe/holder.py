"""One workload's credential, its key in memory: asked for in the workload's name, renewed under a standing approval.

The first one is a first issue like any other and needs the owner's fresh approval (A-106): the server asks for it. So
does the one after a restart of the proxy, because the key ended with it. Every renewal has a new key, vouched for by
the old one, and evidence about the process that waits for it.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from appliance.agent.answers import Answer, read_answer, refusal_of, retry_after_seconds
from appliance.agent.credential import check_chain
from appliance.agent.errors import AgentApiAnswerUnusable, IssuanceRefused
from appliance.binding import composite, jws, renewal, request
from appliance.binding.facts import SERVER_MEDIATED_SECONDS, Model
from appliance.clock import Clock
from appliance.proxy.agent_api import AgentApi
from appliance.proxy.report import Listener
from appliance.proxy.spiffe.workloads import Workload
from appliance.web.peer import Peer
from est import csr
from est.errors import Refusal
from est.exchange import Call, Reply
from est.signer import KeySigner

RENEW_AT = 2 / 3
JITTER = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 300.0
LABEL = "SPIFFE workload, key held by proxy"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Svid:
    """A credential with its key."""

    agent: str
    chain: tuple[x509.Certificate, ...]
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    renew_at: datetime

    @property
    def ends(self) -> datetime:
        return self.chain[0].not_valid_after_utc

    def key_der(self) -> bytes:
        """PKCS#8, as the Workload API hands it over."""
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True, slots=True)
class Trust:
    """What is trusted here: the campus root, and the domain that it is for."""

    root_pem: str
    trust_domain: str

    @property
    def root(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.root_pem.encode("ascii"))


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A request that may have been handed in: the same bytes go again until there is an answer."""

    key: ec.EllipticCurvePrivateKey
    body: bytes
    is_renewal: bool


class Holder:
    """Keeps one workload's credential while somebody asks for it."""

    def __init__(
        self,
        workload: Workload,
        api: AgentApi,
        clock: Clock,
        tell: Listener,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,  # spreads renewals out; no secret hangs on it
    ) -> None:
        self.workload = workload
        self._api = api
        self._clock = clock
        self._tell = tell
        self._pause = pause
        self._chance = chance
        self._lock = asyncio.Lock()
        self._held: Svid | None = None
        self._attempt: _Attempt | None = None
        self._failures = 0
        self._again_at: datetime | None = None

    async def svid(self, peer: Peer) -> Svid:
        """The credential in force; a new one when it is time, on the evidence of this caller's process.

        Waits while the owner is asked. Raises what the Agent API raises, IssuanceRefused, CredentialNotOurs.
        """
        async with self._lock:
            now = self._clock.now()
            held = self._held
            if held is not None and now >= held.ends:
                self._held = held = None
            if held is not None and now < max(held.renew_at, self._again_at or held.renew_at):
                return held
            try:
                self._held = await self._issue(peer, held)
            except Refusal as refusal:
                if held is None:
                    raise
                self._tell_failure(refusal, held)
                return held
            self._failures, self._again_at = 0, None
            leaf = self._held.chain[0]
            self._tell(
                {
                    "event": "spiffe-svid-issued",
                    "agent": self._held.agent,
                    "uid": self.workload.uid,
                    "serial": f"{leaf.serial_number:x}",
                    "renewal": held is not None,
                    "key": "made and held by the proxy",
                }
            )
            return self._held

    async def trust(self, peer: Peer) -> Trust:
        """Raises IdentityServerAway, AgentApiAnswerUnusable."""
        found = _answer(await self._api.trust(Call("GET", "/v1/trust"), peer, {}))
        trust = Trust(found.text("root"), found.text("trust_domain"))
        try:
            _ = trust.root
        except ValueError as cause:
            raise AgentApiAnswerUnusable("root is not a certificate", name="root") from cause
        return trust

    def _tell_failure(self, refusal: Refusal, held: Svid) -> None:
        """Tried again ever more slowly, and never later than a quarter of what is left."""
        now = self._clock.now()
        left = (held.ends - now).total_seconds()
        pause = max(1.0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**self._failures, left / 4))
        self._failures = min(self._failures + 1, 16)
        self._again_at = now + timedelta(seconds=pause)
        reason = str(refusal.fields.get("problem") or refusal.reason)
        self._tell(
            {"event": "spiffe-renewal-failed", "agent": held.agent, "reason": reason, "again_in": round(pause, 1)}
        )

    async def _issue(self, peer: Peer, held: Svid | None) -> Svid:
        trust = await self.trust(peer)
        attempt = self._attempt
        if attempt is None or attempt.is_renewal != (held is not None):
            attempt = self._attempt = await self._prepare(peer, held)
        while True:
            reply = await self._api.hand_in(attempt.body, peer, key_by_proxy=True)
            if reply.status in (200, 201):
                break
            headers = {"Retry-After": reply.headers.get("retry-after", "")}
            if reply.status not in (202, 429, 503):
                self._attempt = None
                raise refusal_of(reply.status, reply.body, headers)
            if held is not None and reply.status != 202:  # the old one serves meanwhile
                raise refusal_of(reply.status, reply.body, headers)
            await self._pause(retry_after_seconds(headers))
        self._attempt = None
        chain_pem = Answer(read_answer(reply.body)).text("certificate")
        leaf = check_chain(
            chain_pem,
            trust.root_pem,
            key=attempt.key.public_key(),
            agent_id=self.workload.agent,
            at=self._clock.now(),
        )
        root = trust.root
        chain = tuple(one for one in x509.load_pem_x509_certificates(chain_pem.encode("ascii")) if one != root)
        life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
        renew_at = leaf.not_valid_before_utc + life * (RENEW_AT + JITTER * self._chance())
        return Svid(self.workload.agent, chain, root, attempt.key, renew_at)

    async def _prepare(self, peer: Peer, held: Svid | None) -> _Attempt:
        """A new key and a request for it, in the workload's name."""
        workload = self.workload
        key = ec.generate_private_key(ec.SECP256R1())
        signer = KeySigner(key)
        jkt = jws.jkt(signer.public_key())
        asked = {"jkt": jkt, "purpose": "issue" if held is None else "renew", "sub": workload.agent}
        call = Call("POST", "/v1/nonce", JSON, body=json.dumps(asked).encode("ascii"))
        granted = _answer(await self._api.nonce(call, peer, {}))
        nonce, server_id = granted.text("nonce"), granted.text("server_id")
        standing = () if held is None else workload.standing_tokens()
        iat = int(self._clock.now().timestamp())
        exp = iat + min(granted.whole("expires_in"), SERVER_MEDIATED_SECONDS)
        prev = None
        if held is not None:
            prev = renewal.seal(
                KeySigner(held.key), sub=workload.agent, jkt=jkt, nonce=nonce, aud=server_id, iat=iat, exp=exp
            )
        common_name = x509.NameAttribute(NameOID.COMMON_NAME, workload.agent.rpartition("/")[2])
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(workload.agent)])
        csr_der = csr.build(subject=x509.Name([common_name]), key=signer, san=san)
        token = request.seal(
            signer,
            sub=workload.agent,
            owner=workload.owner,
            aud=server_id,
            iat=iat,
            exp=exp,
            jti=jws.base64url(secrets.token_bytes(16)),
            nonce=nonce,
            model=Model.SERVER_MEDIATED,
            profiles=("x509",),
            ttl=workload.ttl_seconds,
            csr_der=csr_der,
            label=LABEL,
            purpose=asked["purpose"],
            prev=prev,
            standing=tuple(jws.s256(one) if "." in one else one for one in standing),
        )
        request.unseal(token)
        approvals = tuple(one for one in standing if "." in one)
        return _Attempt(key, composite.write(composite.Composite(token, csr_der, approvals)), held is not None)


def _answer(reply: Reply) -> Answer:
    if reply.status != 200:
        raise refusal_of(reply.status, reply.body)
    return Answer(read_answer(reply.body))


def is_refused(refusal: Refusal) -> bool:
    """Whether the server said no, and not only: later."""
    status = refusal.fields.get("status")
    return isinstance(refusal, IssuanceRefused) and isinstance(status, int) and 400 <= status < 500 and status != 429
