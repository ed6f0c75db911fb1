"""Agents that cheat at the Agent API: what an attacker on an agent's host would try with a real socket."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.binding import approval, jws, request
from appliance.console.client import UnixConnection
from est import csr
from est.signer import KeySigner


@dataclass(frozen=True, slots=True)
class Asked:
    """A fresh key with a request for it, as an honest agent makes them."""

    signer: KeySigner
    request: request.AgentRequest
    csr_der: bytes


class Rogue:
    """One cheating agent; `owner_key` is the owner's own key, for approvals that the owner really gave."""

    def __init__(self, socket: Path, owner_id: str, owner_key: Path) -> None:
        self._socket = socket
        self._owner_id = owner_id
        key = load_pem_private_key(owner_key.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the owner's key is not an EC key")
        self._owner = KeySigner(key)

    def post(self, path: str, document: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of one call to the Agent API."""
        connection = UnixConnection(self._socket, 20.0)
        try:
            connection.request("POST", path, json.dumps(document), {"content-type": "application/json"})
            answer = connection.getresponse()
            body = json.loads(answer.read() or b"{}")
        finally:
            connection.close()
        return answer.status, body

    def ask(self, key: ec.EllipticCurvePrivateKey | None = None, agent_id: str = "") -> Asked:
        """A request with a fresh nonce: for a new agent, or for a known one with this key."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        signer = KeySigner(key)
        named = {"sub": agent_id} if agent_id else {}
        status, granted = self.post("/v1/nonce", {"jkt": jws.jkt(key.public_key()), "purpose": "issue", **named})
        if status != 200:
            raise ValueError(f"no nonce: {status} {granted}")
        san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(granted["sub"])])
        csr_der = csr.build(subject=x509.Name([]), key=key, san=san)
        now = int(time.time())
        token = request.seal(
            signer,
            sub=granted["sub"],
            owner=self._owner_id,
            aud=granted["server_id"],
            iat=now,
            exp=now + 3600,
            jti=secrets.token_urlsafe(16),
            nonce=granted["nonce"],
            profiles=["x509", "wit"],
            ttl=3600,
            csr_der=csr_der,
        )
        return Asked(signer, request.unseal(token), csr_der)

    def approve(self, asked: Asked, signer: KeySigner) -> str:
        """An approval over a request in the owner's name, by whichever key."""
        now = int(time.time())
        return approval.seal(
            signer, asked.request, iss=self._owner_id, iat=now, exp=now + 3600, jti=secrets.token_urlsafe(16)
        )

    def submit(self, asked: Asked, token: str) -> tuple[int, dict[str, Any]]:
        return self.post(
            "/v1/enroll",
            {"request": asked.request.token, "csr": jws.base64url(asked.csr_der), "approvals": [token]},
        )

    def self_approval(self) -> tuple[int, dict[str, Any]]:
        """The agent signs its own approval."""
        asked = self.ask()
        return self.submit(asked, self.approve(asked, asked.signer))

    def approval_for_other_key(self) -> tuple[int, dict[str, Any]]:
        """The owner approved one key of an agent; it presents the approval with another key of its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        first = self.ask(key)
        status, issued = self.submit(first, self.approve(first, self._owner))
        if status != 201:
            return status, {"reason": f"the honest request was refused: {issued.get('reason')}"}
        approved = self.ask(key, first.request.sub)
        other = self.ask(agent_id=first.request.sub)
        return self.submit(other, self.approve(approved, self._owner))

    def approval_replay(self) -> tuple[int, dict[str, Any]]:
        """An approval that was good once: sent again with the same bytes, then with a new request of the same agent.

        The same bytes give the same certificate (a lost answer is fetched so), never a second one.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        asked = self.ask(key)
        token = self.approve(asked, self._owner)
        status, first = self.submit(asked, token)
        if status != 201:
            return status, {"reason": f"the first use was refused: {first.get('reason')}"}
        status, again = self.submit(asked, token)
        if status in (200, 201) and again.get("certificate") != first["certificate"]:
            return status, {"reason": "a second certificate for one approval"}
        if status not in (200, 201) and again.get("reason") != "approval-spent":
            return status, again
        return self.submit(self.ask(key, asked.request.sub), token)


TRICKS: Mapping[str, Callable[[Rogue], tuple[int, dict[str, Any]]]] = {
    "self-approval": Rogue.self_approval,
    "approval-for-other-key": Rogue.approval_for_other_key,
    "approval-replay": Rogue.approval_replay,
}


def main(socket: Path, trick: str, owner_id: str, owner_key: Path) -> None:
    """`python -m lab rogue`: tries one trick and prints what came back as one JSON object."""
    status, body = TRICKS[trick](Rogue(socket, owner_id, owner_key))
    print(
        json.dumps(
            {"trick": trick, "status": status, "reason": body.get("reason", ""), "detail": body.get("detail", "")}
        )
    )
