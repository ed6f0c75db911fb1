"""The owner's own connection to the identity server: challenges out, signed answers in.

Mutual TLS with a client key that approves nothing (A-99). The server is known by the campus root and its name, the key
of its challenges by the agents CA's certificate under that same root; nothing else is believed of what it sends.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import composite, jws
from appliance.owner.client_key import CERTIFICATE_FILE, KEY_FILE
from appliance.owner.errors import ServerAnswerUnusable, ServerRefused, ServerUnreachable
from est.certificates import pem_certificates
from est.errors import EstError
from est.transfer import read_json

MAX_ANSWER = 4 * 1024 * 1024
CHALLENGES = "/v1/owners/self/challenges"
STANDING = "/v1/owners/self/standing"
_WAIT_MARGIN = 15.0
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Server:
    """What the server says of itself over the pinned connection; `key` signs its challenges."""

    server_id: str
    key: ec.EllipticCurvePublicKey
    origin: str = ""
    """Scheme and trust domain."""
    devices_ca: x509.Certificate | None = None
    """Who issues proxies' certificates here; None: the server did not say."""


@dataclass(frozen=True, slots=True)
class Question:
    """One waiting challenge as it came: nothing of it is verified yet."""

    id: str
    challenge: str
    request: str
    csr_der: bytes | None


@dataclass(frozen=True, slots=True)
class ServerReply:
    """One answer of the server: a JSON object, whatever its status; `retry_after` in seconds, empty where not said."""

    status: int
    value: dict[str, Any]
    retry_after: str = ""


class OwnerClient:
    """An async context: one session with the identity server at `url`, such as https://ids.campus.example:8443."""

    def __init__(self, url: str, root_file: Path, client_folder: Path, *, call_seconds: float = 20.0) -> None:
        """Raises ServerUnreachable for files that cannot be used."""
        self._url = url.rstrip("/")
        self._call_seconds = call_seconds
        if not self._url.startswith("https://"):
            raise ServerUnreachable("the server's address begins with https://")
        try:
            roots = pem_certificates(root_file.read_bytes())
            context = ssl.create_default_context(cafile=str(root_file))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(client_folder / CERTIFICATE_FILE, client_folder / KEY_FILE)
        except (OSError, ValueError) as cause:
            raise ServerUnreachable(f"root or client key cannot be used: {cause}") from cause
        self._roots = roots
        self._context = context
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> OwnerClient:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._context))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def server(self, now: datetime) -> Server:
        """Who the server is and with which key it signs challenges; raises ServerAnswerUnusable."""
        told = await self._call("GET", "/v1/trust")
        try:
            agents_ca = pem_certificates(str(told["agents_ca"]).encode("ascii"))[0]
            links = pem_certificates(pem.encode("ascii")) if (pem := str(told.get("links", ""))) else []
            server_id = str(told["server_id"])
        except (KeyError, ValueError) as cause:
            raise ServerAnswerUnusable("the trust document cannot be read") from cause
        devices_ca = None
        if "devices_ca" in told:
            try:
                devices_ca = pem_certificates(str(told["devices_ca"]).encode("ascii"))[0]
            except ValueError as cause:
                raise ServerAnswerUnusable("the trust document cannot be read") from cause
        key = agents_ca.public_key()
        # while the campus changes its root, a link leads from the one that was pinned to the other
        believed = [*self._roots, *(one for one in links if any(_is_issued_by(one, root) for root in self._roots))]
        for name, one in (("agents", agents_ca), ("devices", devices_ca)):
            if one is None:
                continue
            if not any(_is_issued_by(one, root) for root in believed):
                raise ServerAnswerUnusable(f"the {name} CA is not one of the pinned root")
            if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
                raise ServerAnswerUnusable(f"the {name} CA is not valid now")
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ServerAnswerUnusable("the agents CA's key is not an elliptic curve key")
        return Server(server_id, key, str(told.get("origin", "")), devices_ca)

    async def questions(self, wait_seconds: float) -> list[Question]:
        """What waits for this owner; the server answers as soon as there is something, at the latest after the wait."""
        headers = {"prefer": f"wait={int(wait_seconds)}"} if wait_seconds >= 1 else {}
        told = await self._call("GET", CHALLENGES, headers=headers, seconds=wait_seconds + _WAIT_MARGIN)
        rows = told.get("challenges")
        if not isinstance(rows, list):
            raise ServerAnswerUnusable("no list of challenges came")
        return [_question(row) for row in rows]

    async def answer(self, question: Question, approval: str) -> str:
        """Hand in the signed answer; the decision as the server took it."""
        body = json.dumps({"approval": approval}).encode("ascii")
        told = await self._call("POST", f"{CHALLENGES}/{question.id}", body=body)
        return str(told.get("decision", ""))

    async def submit(self, body: bytes) -> ServerReply:
        """Hand in a composite request as an owner's gateway; whatever the server answers. Raises as server()."""
        return await self._exchange("POST", "/v1/agents/enroll", body=body, media_type=composite.MEDIA_TYPE)

    async def submitted(self, rqh: str) -> ServerReply:
        """How a request stands that was handed in before."""
        return await self._exchange("GET", f"/v1/agents/requests/{rqh}")

    async def issued(self) -> dict[str, Any]:
        """What was issued in this owner's name."""
        return await self._call("GET", "/v1/owners/self/issued")

    async def classify(self, agent_id: str, agent_class: str) -> dict[str, Any]:
        """Give a class to an agent of this owner that has none; `agent_id` is its identifier or UUID."""
        name = agent_id.rpartition("/")[2]
        if not _ID.fullmatch(name):
            raise ServerAnswerUnusable("not the identifier of an agent")
        body = json.dumps({"class": agent_class}).encode()
        return await self._call("POST", f"/v1/owners/self/agents/{name}/class", body=body)

    async def standing(self) -> list[dict[str, Any]]:
        """This owner's standing approvals as the server knows them."""
        rows = (await self._call("GET", STANDING)).get("standing")
        if not isinstance(rows, list) or any(not isinstance(row, dict) for row in rows):
            raise ServerAnswerUnusable("no list of standing approvals came")
        return rows

    async def hand_in_standing(self, approval: str) -> dict[str, Any]:
        """Hand in a signed standing approval."""
        return await self._call("POST", STANDING, body=json.dumps({"approval": approval}).encode("ascii"))

    async def withdraw_standing(self, s256: str) -> dict[str, Any]:
        """Withdraw one, named by its hash."""
        if not _ID.fullmatch(s256):
            raise ServerAnswerUnusable("not the hash of a standing approval")
        return await self._call("POST", f"{STANDING}/{s256}/withdraw")

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = 0.0,
    ) -> dict[str, Any]:
        reply = await self._exchange(method, path, body=body, headers=headers, seconds=seconds)
        if reply.status != 200:
            problem = _printable(reply.value.get("reason"), 64)
            detail = _printable(reply.value.get("detail"), 300)
            raise ServerRefused(
                f"{problem or 'refused'} ({reply.status}): {detail}", status=reply.status, problem=problem
            )
        return reply.value

    async def _exchange(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        media_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        seconds: float = 0.0,
    ) -> ServerReply:
        if self._session is None:
            raise RuntimeError("the client is used outside of its context")
        sent = {**(headers or {}), "accept": "application/json"}
        if body is not None:
            sent["content-type"] = media_type
        try:
            async with self._session.request(
                method,
                self._url + path,
                data=body,
                headers=sent,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds or self._call_seconds),
            ) as reply:
                answer = await reply.content.read(MAX_ANSWER + 1)
                while not reply.content.at_eof() and len(answer) <= MAX_ANSWER:
                    answer += await reply.content.read(MAX_ANSWER + 1)
                status, retry_after = reply.status, reply.headers.get("Retry-After", "")
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise ServerUnreachable(f"{self._url}: {str(error) or 'no answer in time'}") from error
        try:
            value = read_json(answer, max_bytes=MAX_ANSWER)
        except EstError as error:
            raise ServerAnswerUnusable(f"the answer is not JSON: {error.detail}") from error
        if not isinstance(value, dict):
            raise ServerAnswerUnusable("the answer is not a JSON object")
        return ServerReply(status, value, retry_after if retry_after.isascii() and retry_after.isdigit() else "")


def _question(row: Any) -> Question:
    if not isinstance(row, dict):
        raise ServerAnswerUnusable("a challenge is not an object")
    texts = []
    for name in ("id", "challenge", "request"):
        text = row.get(name)
        if not isinstance(text, str) or not 0 < len(text) <= jws.MAX_BYTES:
            raise ServerAnswerUnusable(f"a challenge has no {name}")
        texts.append(text)
    challenge_id, challenge, request = texts
    if not _ID.fullmatch(challenge_id):
        raise ServerAnswerUnusable("a challenge's id is not one")
    csr = row.get("csr")
    if csr is not None and not (isinstance(csr, str) and len(csr) <= composite.MAX_CSR_BYTES * 4 // 3 + 4):
        raise ServerAnswerUnusable("a challenge's CSR is not one")
    return Question(challenge_id, challenge, request, None if csr is None else jws.unbase64url(csr, "csr"))


def _is_issued_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _printable(value: object, longest: int) -> str:
    return "".join(one for one in str(value or "")[:longest] if " " <= one <= "~")
