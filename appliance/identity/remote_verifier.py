"""A verifier elsewhere, asked over HTTPS (RFC 9334, section 5.2: the background-check model).

The question is a JSON object: `evidence` (a CMW record), `nonce`, `rqh`, `agent_class` and `proxy` with its `id`, the
`jwk` that this campus certified for it, and the `method` by which it came in. The answer is an EAR
(`application/eat+jwt`) signed by a key that is pinned here, with the nonce, and with the evidence that was sent as
`ear_raw_evidence`: so it is about this request and no other.

The connection is trusted with nothing but its destination; it is the signature that counts. Redirects are not followed,
the answer is bounded in bytes and time, calls at once are bounded in number. Whatever goes wrong is a refusal before
anything is spent, so that the same request and the same approvals can be handed in again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from yarl import URL

from appliance.binding import ear, evidence, jws
from appliance.binding.ear import Ear, Tier
from appliance.binding.errors import BindingError, KeyIdMismatch
from appliance.binding.evidence import Evidence
from appliance.binding.facts import Limits
from appliance.binding.request import AgentRequest
from appliance.clock import Clock
from appliance.identity.appraisal import Appraisal, check_tier, open_evidence
from appliance.identity.appraisal_policy import AppraisalPolicy
from appliance.identity.errors import (
    VerifierAnswerInvalid,
    VerifierBusy,
    VerifierSettingInvalid,
    VerifierTimedOut,
    VerifierUnreachable,
)
from appliance.identity.submitter import Submitter
from appliance.settings import IdentitySettings

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/eat+jwt"
MAX_ANSWER_BYTES = jws.MAX_BYTES
MAX_KEYS = 8
RETRY_AFTER_SECONDS = 30
MAX_RETRY_AFTER_SECONDS = 300
BUSY_SECONDS = 2
_AWAY = (429, 503)


@dataclass(frozen=True, slots=True)
class VerifierDestination:
    """Where the verifier is, what its TLS certificate is held to, and which keys may sign its results."""

    url: str
    anchors_pem: str
    keys: tuple[ec.EllipticCurvePublicKey, ...]


def read_destination(settings: IdentitySettings) -> VerifierDestination | None:
    """The verifier elsewhere that the settings name, None where evidence is appraised here.

    Raises VerifierSettingInvalid.
    """
    if not settings.verifier_url:
        return None
    try:
        url = URL(settings.verifier_url)
        is_good = url.scheme == "https" and url.host and url.user is None and not url.fragment
    except ValueError:
        is_good = False
    if not is_good:
        raise VerifierSettingInvalid("identity.verifier_url is an https address without user and fragment")
    if settings.verifier_anchors is None or settings.verifier_keys is None:
        raise VerifierSettingInvalid("identity.verifier_url needs identity.verifier_anchors and identity.verifier_keys")
    anchors = _text_of(settings.verifier_anchors, "identity.verifier_anchors")
    destination = VerifierDestination(settings.verifier_url, anchors, _keys_of(settings.verifier_keys))
    _context(destination)
    return destination


class RemoteVerifier:
    """Asks the verifier; what comes back counts only if a pinned key signed it about this very evidence."""

    def __init__(
        self,
        to: VerifierDestination,
        policy: AppraisalPolicy,
        *,
        clock: Clock,
        limits: Limits,
        seconds: float = 5.0,
        concurrency: int = 16,
    ) -> None:
        """`policy` says here only how long a credential lives after a warning; the rest is the verifier's to say."""
        self._to = to
        self._keys = {jws.jkt(key): key for key in to.keys}
        self._policy = policy
        self._clock = clock
        self._limits = limits
        self._seconds = seconds
        self._turns = asyncio.Semaphore(concurrency)
        self._concurrency = concurrency
        self._session: aiohttp.ClientSession | None = None

    async def appraise(
        self, token: str | None, request: AgentRequest, submitter: Submitter, *, agent_class: str, now: datetime
    ) -> Appraisal:
        """The verifier's result for a request's evidence, which is checked here first.

        Raises what `open_evidence` raises, EvidenceContraindicated, VerifierUnreachable, VerifierTimedOut,
        VerifierBusy, VerifierAnswerInvalid.
        """
        seen = open_evidence(token, request, submitter, now=now, limits=self._limits)
        answer = await self._ask(_question(seen, submitter, agent_class))
        result = self._read(answer, seen, asked_at=now)
        tier = check_tier(result.submodules)
        longest = self._policy.for_class(agent_class).warning_seconds
        return Appraisal(seen, result.token, tier, longest if tier is Tier.WARNING else None)

    async def close(self) -> None:
        """Ends the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _read(self, answer: bytes, seen: Evidence, *, asked_at: datetime) -> Ear:
        try:
            token = answer.decode("ascii").strip()
            key = self._keys.get(jws.read(token).kid or "")
            if key is None:
                raise KeyIdMismatch("the attestation result is signed by no pinned key")
            result = ear.unseal(token, key)
            ear.check(result, nonce=seen.nonce, now=self._clock.now(), limits=self._limits)
            ear.check_answer(result, evidence=seen.token, asked_at=asked_at, limits=self._limits)
        except (BindingError, UnicodeDecodeError) as cause:
            because = cause.reason if isinstance(cause, BindingError) else "malformed"
            raise _invalid(because) from cause
        return result

    async def _ask(self, body: bytes) -> bytes:
        try:
            async with asyncio.timeout(self._seconds):
                await self._turns.acquire()
        except TimeoutError as cause:
            raise VerifierBusy("too many requests wait for the verifier", retry_after_seconds=BUSY_SECONDS) from cause
        try:
            async with asyncio.timeout(self._seconds):
                return await self._post(body)
        except TimeoutError as cause:
            log.warning("event=verifier-timed-out seconds=%s", self._seconds)
            raise VerifierTimedOut(
                "the verifier did not answer in time", retry_after_seconds=RETRY_AFTER_SECONDS
            ) from cause
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as cause:
            raise _invalid("not-http") from cause
        except (aiohttp.ClientError, OSError) as cause:
            log.warning("event=verifier-unreachable cause=%r", cause)
            raise VerifierUnreachable(
                "the verifier cannot be reached", retry_after_seconds=RETRY_AFTER_SECONDS
            ) from cause
        finally:
            self._turns.release()

    async def _post(self, body: bytes) -> bytes:
        headers = {"content-type": "application/json", "accept": MEDIA_TYPE, "accept-encoding": "identity"}
        async with self._connections().post(self._to.url, data=body, headers=headers, allow_redirects=False) as answer:
            if answer.status != 200:
                retry_after = _seconds_of(answer.headers.get("retry-after", ""))
                answer.close()
                if answer.status in _AWAY:
                    raise VerifierUnreachable("the verifier says that it is away", retry_after_seconds=retry_after)
                raise _invalid(f"status-{answer.status}")
            if answer.content_type != MEDIA_TYPE:
                answer.close()
                raise _invalid("media-type")
            found = bytearray()
            async for chunk in answer.content.iter_any():
                found += chunk
                if len(found) > MAX_ANSWER_BYTES:
                    answer.close()
                    raise _invalid("too-large")
            return bytes(found)

    def _connections(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=_context(self._to), limit=self._concurrency, keepalive_timeout=4.0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
                max_line_size=8190,
                max_field_size=8190,
            )
        return self._session


def _question(seen: Evidence, submitter: Submitter, agent_class: str) -> bytes:
    proxy = {"id": submitter.proxy_id, "jwk": jws.jwk(submitter.key), "method": submitter.method}
    question = {
        "evidence": evidence.write_cmw(seen.token),
        "nonce": seen.nonce,
        "rqh": seen.rqh,
        "agent_class": agent_class,
        "proxy": proxy,
    }
    return json.dumps(question, separators=(",", ":")).encode("ascii")


def _invalid(because: str) -> VerifierAnswerInvalid:
    log.warning("event=verifier-answer-invalid because=%s", because)
    return VerifierAnswerInvalid(
        "the verifier's answer is no result for this evidence",
        because=because,
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _seconds_of(text: str) -> int:
    """A Retry-After in seconds, within bounds; a date or nothing is our own number."""
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        return RETRY_AFTER_SECONDS
    return min(max(int(text), 1), MAX_RETRY_AFTER_SECONDS)


def _context(to: VerifierDestination) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    try:
        # An anchor is what the administrator named, be it a root, an intermediate or the server's certificate.
        context.load_verify_locations(cadata=to.anchors_pem)
    except (ssl.SSLError, ValueError) as cause:
        raise VerifierSettingInvalid("identity.verifier_anchors holds no certificate as PEM") from cause
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _keys_of(path: Path) -> tuple[ec.EllipticCurvePublicKey, ...]:
    end = "-----END PUBLIC KEY-----"
    parts: Sequence[str] = _text_of(path, "identity.verifier_keys").split(end)[:-1]
    keys = []
    for part in parts:
        try:
            key = load_pem_public_key((part[part.index("-----BEGIN") :] + end + "\n").encode())
        except ValueError as cause:
            raise VerifierSettingInvalid("identity.verifier_keys holds a block that is no public key") from cause
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise VerifierSettingInvalid("identity.verifier_keys: results are signed with P-256 keys (ES256)")
        keys.append(key)
    if not 0 < len(keys) <= MAX_KEYS:
        raise VerifierSettingInvalid(f"identity.verifier_keys: 1 to {MAX_KEYS} public keys as PEM")
    return tuple(keys)


def _text_of(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise VerifierSettingInvalid(f"{name}: {path} cannot be read as text") from cause
