"""One more process of the identity server: the same API, keys and database, at the port that all workers share.

Everything that must happen once is settled by a statement in the database, so it does not matter which process a
request reaches. Of other processes' changes it hears through the outbox. It is told what to serve on its standard
input, and ends when that does; so it never outlives the process that started it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.ca import CertificateAuthority
from appliance.clock import SystemClock
from appliance.hierarchy import read_server
from appliance.huge_pages import gathering
from appliance.identity.assemble import build_identity
from appliance.identity.routes import TrustInfo
from appliance.identity.routes import endpoints as identity_endpoints
from appliance.log import set_up_logging
from appliance.memory import give_back, settle
from appliance.registrar.ldevids import Ldevids
from appliance.settings import Settings
from appliance.store.store import Store
from appliance.web.app import build_app
from appliance.web.limits import Bucket, Limits
from appliance.web.routes import ROUTES
from appliance.web.server import Listener, Timing
from appliance.web.tls import TlsFront

FOLLOW_SECONDS = 0.05
"""How late, at the most, a process hears of what another has committed."""
READY = b"ready\n"
IDENTITY_ROUTES = tuple(one for one in ROUTES if one.endpoint.startswith("identity."))


@dataclass(frozen=True, slots=True)
class Orders:
    """What a worker is told: the settings in force, the home's passphrase, the shared socket by its descriptor."""

    settings: Settings
    passphrase: bytes
    descriptor: int
    port: int

    def write(self) -> bytes:
        """One line of JSON."""
        told = {
            "settings": self.settings.model_dump(mode="json"),
            "passphrase": self.passphrase.hex(),
            "descriptor": self.descriptor,
            "port": self.port,
        }
        return json.dumps(told).encode() + b"\n"

    @classmethod
    def read(cls, line: bytes) -> Orders:
        """ValueError, KeyError for a line that is none of ours."""
        told: dict[str, Any] = json.loads(line)
        settings = Settings.model_validate(told["settings"])
        return cls(settings, bytes.fromhex(told["passphrase"]), told["descriptor"], told["port"])


class IdentityWorker:
    """Serves one socket until close(). Call on a running event loop; raises what store and keys refuse."""

    def __init__(self, orders: Orders) -> None:
        settings = orders.settings
        home, clock = settings.home, SystemClock()
        self._store = Store.open(settings.store_url, clock, free_bytes=settings.store.free_bytes, is_shared=True)
        try:
            self._build(settings, home, clock, orders)
        except BaseException:  # whatever it was, the database must not stay open
            self._store.close()
            raise

    def _build(self, settings: Settings, home: Path, clock: SystemClock, orders: Orders) -> None:
        store = self._store
        ca = CertificateAuthority.open(home, settings, orders.passphrase, store, clock)
        identity = build_identity(
            settings.identity, origin=settings.origin, server_id=settings.server_id, store=store, ca=ca, clock=clock
        )
        self._identity = identity
        ldevids = Ldevids(store=store, clock=clock, ca=ca)
        web = settings.web
        limits = Limits(
            clock,
            Bucket(web.address_rate, web.address_burst),
            Bucket(web.identity_rate, web.identity_burst),
            is_known=lambda peer: ldevids.is_ours(peer) or identity.is_gateway(peer),
        )
        trust = TrustInfo(settings.radius_server_name, settings.server_id, settings.domain.trust_domain, orders.port)
        app = build_app("device", identity_endpoints(identity, trust), limits=limits, routes=IDENTITY_ROUTES)
        own = read_server(home, "registrar", orders.passphrase, root=ca.root)
        tls = TlsFront(own.key, own.certificate, own.sent)
        self._listener = Listener("identity", app, timing=Timing.of(web), tls=tls)

    async def open(self, listening: socket.socket) -> None:
        """Take connections, and hear of what other processes do."""
        self._following = asyncio.create_task(self._store.follow(FOLLOW_SECONDS))
        await self._listener.open_socket(listening)

    async def close(self) -> None:
        """Finish what is under way."""
        self._identity.challenges.release()
        await self._listener.close()
        await self._identity.close()
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)
        self._store.close()


async def _serve(orders: Orders) -> None:
    worker = IdentityWorker(orders)
    over = asyncio.Event()
    loop, listening = asyncio.get_running_loop(), sys.stdin.fileno()
    loop.add_reader(listening, over.set)  # nothing more is said there: it is the end
    await worker.open(socket.socket(fileno=orders.descriptor))
    try:
        settle()
        sys.stdout.buffer.write(READY)
        sys.stdout.buffer.flush()
        async with gathering():
            await over.wait()
    finally:
        loop.remove_reader(listening)
        await worker.close()


def main() -> None:
    """The process."""
    for one in (signal.SIGINT, signal.SIGTERM):  # a terminal or a service manager sends them to every process
        signal.signal(one, signal.SIG_IGN)
    orders = Orders.read(sys.stdin.buffer.readline())
    set_up_logging(orders.settings.log)
    give_back()
    asyncio.run(_serve(orders))


if __name__ == "__main__":
    main()
