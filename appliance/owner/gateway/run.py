"""The gateway as one running thing: one listener for proxies, one connection per campus, one task for the rules.

Events go to one listener: `ready` with the port, `stopped`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from appliance.clock import Clock
from appliance.errors import KeyMismatch
from appliance.owner import keys
from appliance.owner.client import OwnerClient
from appliance.owner.client_key import GATEWAY_CERTIFICATE_FILE, GATEWAY_KEY_FILE
from appliance.owner.errors import GatewayConfigInvalid, GatewayQueueUnusable
from appliance.owner.gateway.config import GatewayConfig
from appliance.owner.gateway.deciding import Rules
from appliance.owner.gateway.domains import Domain, Proxies
from appliance.owner.gateway.queue import Queue
from appliance.owner.gateway.routes import ROUTES, endpoints
from appliance.owner.gateway.service import GatewayService
from appliance.web.app import build_app
from appliance.web.limits import Bucket, Limits
from appliance.web.server import Listener, Timing
from appliance.web.tls import TlsFront
from est.certificates import pem_certificates

ADDRESS_RATE = Bucket(per_second=100.0, burst=1000)
"""Calls of one address: a site may have many proxies behind one."""
_DRAIN_SECONDS = 5.0


async def run_gateway(
    config: GatewayConfig,
    state: Path,
    clock: Clock,
    tell: Callable[[dict[str, Any]], None],
    *,
    passphrase: bytes | None = None,
) -> None:
    """Serve proxies until cancelled.

    Raises GatewayQueueUnusable for a folder that another gateway uses, GatewayConfigInvalid, ServerUnreachable for
    files that do not load, and what the keys refuse.
    """
    front = _front(config.key)
    async with contextlib.AsyncExitStack() as stack:
        queue = Queue.open(state, create=True)
        stack.callback(queue.close)
        stack.enter_context(_locked(state))
        domains = []
        for one in config.domains:
            signer = None if one.policy_key is None else keys.load(one.policy_key, passphrase=passphrase)
            client = await stack.enter_async_context(OwnerClient(one.server, one.root, one.client))
            domains.append(Domain(one, client, signer))
        rules = Rules(queue, {one.config.name: one for one in domains}, clock)
        service = GatewayService(queue, Proxies(domains, clock), rules, config.limits, clock)
        limits = Limits(clock, ADDRESS_RATE, ADDRESS_RATE)
        app = build_app("gateway", endpoints(service), routes=ROUTES, limits=limits)
        listener = Listener("gateway", app, timing=Timing(), tls=front)
        try:
            port = await listener.open_tcp(config.host, config.port)
        except OSError as cause:
            raise GatewayConfigInvalid(f"{config.host}:{config.port} cannot be opened: {cause.strerror}") from cause
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(rules.run())
                for domain in domains:
                    tasks.create_task(domain.follow(clock))
                host = f"[{config.host}]" if ":" in config.host else config.host
                names = [one.name for one in config.domains]
                tell({"event": "ready", "pid": os.getpid(), "listen": f"{host}:{port}", "domains": names})
        finally:
            await listener.close(_DRAIN_SECONDS)


def _front(folder: Path) -> TlsFront:
    """TLS with the gateway's own server key; raises GatewayConfigInvalid, and what `load_private` raises."""
    key = keys.load_private(folder / GATEWAY_KEY_FILE)
    try:
        certificate = pem_certificates((folder / GATEWAY_CERTIFICATE_FILE).read_bytes())[0]
    except (OSError, ValueError) as cause:
        raise GatewayConfigInvalid(f"{folder / GATEWAY_CERTIFICATE_FILE} cannot be used") from cause
    if certificate.public_key() != key.public_key():
        raise KeyMismatch("the gateway's certificate is of another key")
    return TlsFront(key, certificate, ())


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One gateway per folder; its owner's commands need no lock."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            raise GatewayQueueUnusable(f"another gateway runs on {folder}") from cause
        yield
    finally:
        os.close(handle)
