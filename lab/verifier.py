"""A small reference verifier: evidence in, attestation results out, over HTTPS (RFC 9334, section 5.2).

It speaks the protocol of `appliance.identity.remote_verifier`, judges by an appraisal policy file, and signs with the
key in DIR/verifier.key. DIR is made at the first start; the appliance is given DIR/tls.pem as its anchor and
DIR/verifier.pub as the key that signs results. Nothing is remembered: each call stands for itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from appliance.binding import ear, evidence, jws
from appliance.binding.claims import members
from appliance.binding.ear import Tier
from appliance.binding.errors import EvidenceForOtherRequest, EvidenceNonceMismatch, EvidenceWrongProxy, Malformed
from appliance.identity.appraisal import judge
from appliance.identity.appraisal_policy import BUILT_IN, AppraisalPolicy
from est.errors import Refusal
from est.signer import KeySigner
from est.transfer import read_json
from lab.certificates import common_name, key_usage, make_leaf, make_root

MAX_BODY = 65_536
READ_SECONDS = 10.0
EAR_SECONDS = 3600
DEVELOPER = "https://verifier.lab.example"
BUILD = "lab verifier 1"
PATH = "/v1/appraise"


class LabVerifier:
    """Appraises what callers send; one key, one policy."""

    def __init__(
        self,
        folder: Path,
        policy: AppraisalPolicy = BUILT_IN,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes keys and certificate from `folder`, and makes them where they are missing."""
        self._folder = folder
        self._policy = policy
        self._now = now
        self._runner: web.AppRunner | None = None
        _furnish(folder)
        key = load_pem_private_key((folder / "verifier.key").read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("verifier.key is no elliptic curve key")
        self._signer = KeySigner(key)

    def appraise(self, body: bytes) -> str:
        """The signed result for one question; raises a Refusal for what is no evidence of this proxy."""
        question = members(read_json(body, max_bytes=MAX_BODY), "question")
        question.check_names(frozenset({"evidence", "nonce", "rqh", "agent_class", "proxy"}))
        proxy = question.inner("proxy")
        proxy.check_names(frozenset({"id", "jwk", "method"}))
        key = jws.read_jwk(proxy.value("jwk"))
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise Malformed("the proxy's key is no elliptic curve key", object="question")
        token = evidence.read_cmw(question.value("evidence"))
        seen = evidence.unseal(token, key)
        if seen.iss != proxy.text("id", max_length=512):
            raise EvidenceWrongProxy("the evidence comes from another proxy")
        if seen.nonce != question.nonce("nonce"):
            raise EvidenceNonceMismatch("the evidence was made for another nonce")
        if seen.rqh != question.hash("rqh"):
            raise EvidenceForOtherRequest("the evidence was made for another request")
        agent_class = question.value("agent_class")
        if not isinstance(agent_class, str):
            raise question.malformed("agent_class", "a text, empty for agents without a class")
        parts = judge(seen, proxy.text("method"), self._policy, agent_class)
        at = int(self._now().timestamp())
        if not seen.iat - 60 <= at <= seen.exp + 60:
            stale = {"instance-identity": 97}
            parts["agent"] = ear.Submodule(Tier.CONTRAINDICATED, stale, (self._policy.identifier,))
        return ear.seal(
            self._signer,
            iat=at,
            exp=at + EAR_SECONDS,
            nonce=seen.nonce,
            developer=DEVELOPER,
            build=BUILD,
            submodules=parts,
            raw_evidence=token,
        )

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listens; the port."""
        application = web.Application(client_max_size=MAX_BODY)
        application.router.add_post(PATH, self.answer)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "tls.pem", self._folder / "tls.key")
        site = web.TCPSite(self._runner, host, port, ssl_context=context)
        await site.start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Ends listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One call over HTTP."""
        try:
            body = await asyncio.wait_for(request.read(), READ_SECONDS)
            return web.Response(text=self.appraise(body), content_type="application/eat+jwt")
        except TimeoutError:
            return web.json_response({"reason": "too-slow"}, status=408)
        except Refusal as refusal:
            return web.json_response({"reason": refusal.reason, "detail": refusal.detail}, status=400)


async def serve(folder: Path, host: str, port: int, rules: AppraisalPolicy) -> None:
    """`python -m lab verifier`: run until SIGTERM or SIGINT; one JSON line when it listens."""
    verifier = LabVerifier(folder, rules)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    found = await verifier.start(host, port)
    ready = {"event": "ready", "pid": os.getpid(), "url": f"https://{host}:{found}{PATH}"}
    print(json.dumps(ready), flush=True)
    await stopped.wait()
    await verifier.stop()


def _furnish(folder: Path) -> None:
    """Keys and certificate, once; private ones are for this user alone."""
    if (folder / "verifier.pub").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    begin = datetime.now(UTC) - timedelta(minutes=5)
    root = make_root("Lab verifier", now=begin)
    tls = make_leaf(root, common_name("verifier"), now=begin, extensions=[(key_usage(), True), (names, False)])
    _private(folder / "verifier.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    _private(folder / "tls.key", tls.key_pem)
    (folder / "tls.pem").write_bytes(tls.certificate.public_bytes(Encoding.PEM))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "verifier.pub").write_bytes(public)


def _private(path: Path, octets: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(octets)
