"""Unix sockets at paths that the kernel's own limit of 107 octets would refuse."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.console.client import ApplianceUnreachable, call
from appliance.web.app import build_app
from appliance.web.peer import Peer
from appliance.web.server import Listener
from appliance.web.unix_path import MAX_BYTES, short_path
from est.exchange import Call, Reply


def test_a_short_path_is_left_as_it_is(tmp_path: Path) -> None:
    with short_path(Path("/run/a.sock")) as short:
        assert short == "/run/a.sock"


@pytest.mark.parametrize("length", [MAX_BYTES - 20, MAX_BYTES, MAX_BYTES + 1, 250])
def test_a_listener_is_reached_however_deep_its_socket_lies(tmp_path: Path, length: int) -> None:
    folder = tmp_path
    while len(os.fsencode(folder)) < length:
        folder /= "d" * 60
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "admin.sock"

    async def operation(asked: Call, peer: Peer, params: Mapping[str, str]) -> Reply:
        return Reply(200, "application/json", body=json.dumps(params["name"]).encode())

    async def story() -> None:
        listener = Listener("admin", build_app("admin", {"console.operation": operation}))
        await listener.open_unix(path, 0o600)
        try:
            assert path.is_socket() and path.stat().st_mode & 0o777 == 0o600
            assert await asyncio.to_thread(call, path, "look", {}) == "look"
        finally:
            await listener.close()
        with pytest.raises(ApplianceUnreachable):
            call(path, "look", {})

    asyncio.run(story())
