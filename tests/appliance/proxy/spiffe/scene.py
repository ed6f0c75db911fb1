"""A real identity server with an owner, and a proxy's Workload API in front of it; the caller is this very process."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from appliance.binding import jws
from appliance.binding.standing import Platform
from appliance.proxy.agent_api import AgentApi, Attester
from appliance.proxy.callers import CallerBook
from appliance.proxy.evidence import Device
from appliance.proxy.spiffe.api import WorkloadApi, to_status
from appliance.proxy.spiffe.holder import LABEL, Holder
from appliance.proxy.spiffe.http2 import GrpcServer
from appliance.proxy.spiffe.workloads import read_workloads
from appliance.proxy.state import ProxyState
from appliance.web.limits import Bucket, Limits
from est.exchange import Call, Reply
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, Campus, OwnerHost, Proxy, new_key
from tests.appliance.identity.test_enroll import play
from tests.appliance.identity.test_server_mediated import Desk, open_challenge
from tests.appliance.identity.test_standing import UEID, stand

PROGRAM = sha256(Path("/proc/self/exe").read_bytes()).digest()


@dataclass
class Scene:
    """The Workload API, running. `questions` are what the owner was asked."""

    campus: Campus
    proxy: Proxy
    owner: OwnerHost
    desk: Desk
    agent: str
    standing: str
    socket: Path
    server: GrpcServer
    state: ProxyState
    events: list[dict[str, Any]]
    questions: list[dict[str, Any]] = field(default_factory=list)

    async def answer(self, *, deny: bool = False) -> None:
        """The owner answers the next question."""
        async with asyncio.timeout(20):
            while not (waiting := await self.desk.waiting()):
                await asyncio.sleep(0.02)
        (row,) = waiting
        self.questions.append(row)
        challenge = open_challenge(self.campus, row["challenge"])
        at = int(self.campus.clock.now().timestamp())
        changed: dict[str, Any] = {"nonce": challenge.nonce, "proxy": challenge.proxy, "exp": at + 600}
        token = self.owner.approve(row["request"], **changed, **({"deny": True} if deny else {}))
        status, told = await self.desk.answer(challenge, token)
        assert status == 200, told

    def told(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]


def run(
    folder: Path,
    story: Callable[[Scene], Awaitable[None]],
    *,
    program: bytes = PROGRAM,
    uid: int | None = None,
    rate: Bucket | None = None,
    silent_seconds: float = 10.0,
    **bounds: Any,
) -> None:
    """Play a story before a Workload API whose one workload has this program and user."""

    async def given(campus: Campus, proxy: Proxy, owner: OwnerHost) -> None:
        desk = await Desk.register(campus, owner, folder)
        made = await campus.registry.add(owner.ref, proxy.identifier, jws.jkt(new_key().public_key()), actor=ADMIN)
        agent, user = made["identifier"], os.getuid() if uid is None else uid
        platform = Platform(UEID, (jws.base64url(program),), user)
        token = stand(owner, agent, proxy, **({"platform": platform} | bounds))
        (folder / "standing.jws").write_text(token + "\n")
        entry = {"agent": agent, "owner": owner.identifier, "executables": [program.hex()]}
        entry |= {"standing": [str(folder / "standing.jws")]}
        lines = [f"{name} = {json.dumps(value)}" for name, value in entry.items()]
        file = folder / "workloads.toml"
        file.write_text("\n".join(["[[workload]]", *lines, f"uid = {user}", "ttl_seconds = 3600", ""]))

        class Link:
            async def send(self, call: Call) -> Reply:
                return await campus.app.handle(call, proxy.peer)

        state = ProxyState.open(folder / "proxy")
        attester = Attester(Device(proxy.identifier, UEID), KeySigner(proxy.key))
        api = AgentApi(Link(), lambda: attester, CallerBook(state, campus.clock), campus.clock, allow_root=True)
        events: list[dict[str, Any]] = []

        async def pause(_: float) -> None:
            await asyncio.sleep(0.02)

        holders = [
            Holder(one, api, campus.clock, events.append, pause=pause, chance=lambda: 0.0)
            for one in read_workloads(file)
        ]
        bucket = rate or Bucket(100, 100)
        limits = Limits(campus.clock, bucket, bucket)
        served = WorkloadApi(holders, limits, allow_root=True, look_seconds=0.05, trust_seconds=0.05)
        server = GrpcServer(served.serve, to_status, silent_seconds=silent_seconds)
        socket = folder / "spiffe.sock"
        await server.open(socket, 0o660)
        try:
            await story(Scene(campus, proxy, owner, desk, agent, token, socket, server, state, events))
        finally:
            await server.close()
            state.close()
        assert not socket.exists() and not server.connections

    play(folder, given)


__all__ = ["LABEL", "PROGRAM", "Scene", "run"]
