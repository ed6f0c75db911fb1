"""Stories about the life of credentials, for `./lab/demo --models`: a passkey, a renewal, an owner's end.

Each is a function over a stage, as the other stories of the models are. `STORIES` lists them.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import dual_identity, jws, possession
from appliance.binding.webauthn import Assertion, Passkey
from appliance.clock import SystemClock
from appliance.owner.review import review
from appliance.owner.sign import sign
from lab import credentials
from lab.stage import Agent
from lab.story import Cast, DemoFailed, Story

DOMAIN = "campus.example"
_UP_AND_UV = 0x05


class Stage(Protocol):
    """What these stories need of a stage."""

    out: Path
    story: Story
    cast: Cast
    socket: Path
    listeners: dict[str, str]
    owner_ids: dict[str, str]

    def appliance(self, *arguments: str | Path, check: bool = True) -> Any: ...
    def admin(self, *arguments: str | Path) -> Any: ...
    def agent(self, name: str, owner: str) -> Agent: ...
    def client_key(self, owner: str) -> Path: ...
    def root_pem(self) -> Path: ...
    def owner_command(self, owner: str) -> str: ...
    def landed(self, agent: Agent) -> str: ...


class SoftPasskey:
    """A FIDO2 key of the laboratory, in software; its user is always there."""

    def __init__(self) -> None:
        self.passkey = Passkey(DOMAIN, f"https://{DOMAIN}")
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._count = 0

    def public_key(self) -> ec.EllipticCurvePublicKey:
        return self._key.public_key()

    def assertion(self, challenge: bytes) -> Assertion:
        self._count += 1
        told = {"type": "webauthn.get", "challenge": jws.base64url(challenge), "origin": self.passkey.origin}
        client = json.dumps({**told, "crossOrigin": False}, separators=(",", ":")).encode()
        place = hashlib.sha256(self.passkey.rp_id.encode()).digest()
        data = place + bytes([_UP_AND_UV]) + self._count.to_bytes(4, "big")
        signature = self._key.sign(data + hashlib.sha256(client).digest(), ec.ECDSA(hashes.SHA256()))
        return Assertion(data, client, signature)


def passkey(stage: Stage) -> None:
    """Alice registers a passkey and approves with it."""
    with stage.story.step("Alice registers a passkey; her next agent is approved by a touch."):
        key, now = SoftPasskey(), int(time.time())
        statement = stage.out / "passkey-statement.jwt"
        statement.write_text(possession.seal(
            key, sub="alice", aud=f"spiffe://{DOMAIN}", iat=now, exp=now + 3600, jti=secrets.token_urlsafe(16),
            credential=jws.base64url(secrets.token_bytes(16)),
        ))  # fmt: skip
        stage.admin("owners", "add-key", "alice", statement)
        agent = stage.agent("touched", "alice")
        approval = stage.out / "touched-approval.jws"
        asking = threading.Thread(
            target=stage.appliance, daemon=True,
            args=(
                "agent", "request", "--socket", stage.socket, "--out", agent.folder, "--owner",
                stage.owner_ids["alice"], "--wait-approval", approval, "--wait-seconds", "40",
            ),
        )  # fmt: skip
        asking.start()
        token = _when_whole(agent.folder / "request.jws")
        card = review(token, owner_id=stage.owner_ids["alice"], now=SystemClock().now())
        approval.write_text(sign(card, key, now=SystemClock().now(), expected_code=card.short_code))
        asking.join(60)
        dual = dual_identity.of_certificate(credentials.load(agent.chain)[0])
        form = "passkey" if dual is not None and dual.is_by_passkey else "JWS"
        observed = f"{stage.landed(agent)}, by {form}"
        stage.story.check("passkey", "agent-mediated for alice, VLAN 20, by passkey", observed)


def standing_renewal(stage: Stage) -> None:
    """One signature beforehand, and a renewal that asks nobody."""
    with stage.story.step("Alice approves renewals beforehand; her agent renews, and nobody is asked."):
        agent = stage.agent("mailer", "alice")
        _first(stage, agent)
        before = credentials.load(agent.chain)[0].serial_number
        connection = _connection(stage, "alice")
        issued = stage.appliance("owner", "issued", *connection)
        mine = next(one for one in issued["credentials"] if int(one["serial"], 16) == before)
        standing = _stand(stage, "alice", mine)
        stage.appliance("owner", "standing-submit", standing["standing"], *connection)
        _renew(stage, agent, standing["s256"])
        renewed = credentials.load(agent.chain)[0].serial_number != before
        uses = stage.appliance("owner", "standing-list", *connection)[0]["uses"]
        observed = f"{stage.landed(agent)}, {'renewed' if renewed else 'the old one'}, used {uses} time"
        expected = "standing for alice, VLAN 20, renewed, used 1 time"
        stage.story.check("standing-approval-renewal", expected, observed)


def owner_revoked(stage: Stage) -> None:
    """An owner leaves: credential, standing approval and renewal fall in one transaction."""
    with stage.story.step("Carol leaves: her agents' credentials and approvals fall with her."):
        made = stage.admin("owners", "add", "carol", "--department", "R&D")
        stage.owner_ids["carol"] = made["identifier"]
        key = stage.appliance(
            "owner", "keygen", "--out", stage.out / "owners" / "carol", "--ref", "carol", "--trust-domain", DOMAIN
        )
        stage.admin("owners", "add-key", "carol", key["statement"])
        agent = stage.agent("leftover", "carol")
        _first(stage, agent)
        before = stage.landed(agent)
        connection = _connection(stage, "carol")
        mine = stage.appliance("owner", "issued", *connection)["credentials"][0]
        standing = _stand(stage, "carol", mine)
        stage.appliance("owner", "standing-submit", standing["standing"], *connection)
        stage.admin("owners", "revoke", "carol")
        (row,) = stage.admin("owners", "standing", "carol")
        state = stage.admin("certs", "show", mine["serial"])["state"]
        refused = _refusal(stage, agent, standing["s256"])
        observed = f"{before}; then {stage.landed(agent)}, {state}, {row['state']}, {refused}"
        expected = (
            "agent-mediated for carol, VLAN 20; then agent-mediated for carol, VLAN reject, revoked, withdrawn, "
            "agent-revoked"
        )
        stage.story.check("owner-revoked-cascade", expected, observed)


def _first(stage: Stage, agent: Agent) -> None:
    stage.appliance(
        "agent", "request", "--socket", stage.socket, "--out", agent.folder, "--owner", stage.owner_ids[agent.owner],
        "--approval-command", stage.owner_command(agent.owner),
    )  # fmt: skip


def _connection(stage: Stage, owner: str) -> tuple[str | Path, ...]:
    """How an owner's tool reaches the server."""
    server = f"https://{stage.listeners['device']}"
    return ("--client", stage.client_key(owner), "--server", server, "--root", stage.root_pem())


def _stand(stage: Stage, owner: str, issued: dict[str, Any]) -> Any:
    """The owner allows what was measured at the first issue."""
    seen = issued["platform"]
    return stage.appliance(
        "owner", "standing-sign", "--owner", stage.owner_ids[owner],
        "--key", stage.out / "owners" / owner / "owner.key.pem", "--agent", issued["agent"],
        "--server-id", f"https://ids.{DOMAIN}/v1", "--proxy", issued["proxy"], "--ueid", seen["ueid"],
        "--executable", seen["executable_sha256"], "--uid", str(seen["uid"]),
        "--out", stage.out / f"{owner}-standing.jws", "--yes",
    )  # fmt: skip


def _renew(stage: Stage, agent: Agent, standing: str) -> None:
    """`agent run` tells in lines, not in one answer."""
    words = ("agent", "run", "--socket", stage.socket, "--out", agent.folder, "--standing", standing, "--once")
    command = [sys.executable, "-m", "appliance", *map(str, words)]
    done = stage.cast.run(command)
    if done.returncode != 0:
        raise DemoFailed(f"agent run ended with {done.returncode}: {done.stderr.strip()}")


def _refusal(stage: Stage, agent: Agent, standing: str) -> str:
    """Why a renewal is refused, as the keeper tells it; it would try again, so it is stopped after the first no."""
    import asyncio

    from appliance.agent import AgentOptions
    from appliance.agent.keeper import Keeper

    told: list[str] = []

    def tell(event: dict[str, Any]) -> None:
        if event["event"] == "renewal-failed":
            told.append(event["reason"])
            raise asyncio.CancelledError

    keeper = Keeper(AgentOptions(socket=stage.socket, out=agent.folder), SystemClock(), tell, standing=(standing,))
    try:
        asyncio.run(keeper.run(once=True))
    except asyncio.CancelledError:
        return told[0]
    return "renewed"


def _when_whole(path: Path) -> str:
    deadline = time.monotonic() + 30
    while not path.exists() or path.read_text().count(".") != 2:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.1)
    return path.read_text()


STORIES: tuple[Callable[[Stage], None], ...] = (passkey, standing_renewal, owner_revoked)
