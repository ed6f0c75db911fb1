"""Mallory's registrar: real TLS towards the pledge, real HTTPS towards the MASA, and whatever he likes in between.

Runs in a thread of its own, so that tests which block can talk to it. `instead` replaces the answer of an operation:
name -> function(call, the proper answer as a function), and may return raw bytes.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from brski import Manufacturer, Registrar
from est.exchange import Call, Reply
from lab.certificates import Domain, Identity
from tests.appliance.proxy.campus import Campus, Seen
from tests.endtoend.attacks.site import Line, Maker

Instead = Callable[[Call, Callable[[], Reply]], object]


class RogueRegistrar:
    """`with RogueRegistrar(domain, maker) as rogue`: listens at `rogue.address`."""

    def __init__(
        self,
        domain: Domain,
        maker: Maker,
        *,
        chain: Sequence[x509.Certificate] | None = None,
        identity: Identity | None = None,
        registrar: Registrar | None = None,
        instead: dict[str, Instead] | None = None,
    ) -> None:
        self._maker, self._domain = maker, domain
        self._registrar = registrar or Registrar(domain.signer, domain.certificate, domain.chain)
        self._campus = Campus(maker.factory, domain, identity=identity, chain=chain)
        for name, change in (instead or {}).items():
            folder = "est" if name in ("cacerts", "csrattrs", "simpleenroll") else "brski"
            self._campus.instead[f"/.well-known/{folder}/{name}"] = lambda call, client, proper, change=change: change(
                call, proper
            )
        self._campus.voucher = self._voucher  # type: ignore[method-assign]
        self._campus._note_name = self._greet  # type: ignore[method-assign]
        self.rolled_over: Identity | None = None
        """Shown on connections from now on."""
        self.replies: list[Reply] = []

    def __enter__(self) -> RogueRegistrar:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._campus.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._campus.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def port(self) -> int:
        return self._campus.port

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def seen(self) -> list[Seen]:
        return self._campus.seen

    def paths(self) -> list[str]:
        """The operations that were asked for, in order."""
        return self._campus.paths()

    def of(self, name: str) -> list[Seen]:
        return self._campus.of(name)

    def _greet(self, tls: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        self._campus._names[id(tls)] = name
        if self.rolled_over is not None:
            other = Campus(self._maker.factory, self._domain, identity=self.rolled_over)
            tls.context = other._context()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def _voucher(self, call: Call, client: x509.Certificate | None, **_: Any) -> Reply:
        """What the MASA says over HTTPS, unread."""
        maker = self._maker
        exchange = self._registrar.consider(
            call, client, (maker.factory.device_ca.certificate,),
            [Manufacturer(maker.name, maker.factory.device_anchors, allowed_masas=frozenset({maker.authority}))],
            tls_certificate=self._campus.identity.certificate, now=datetime.now(UTC),
        )  # fmt: skip
        line = Line(maker.authority)
        try:
            self.replies.append(line.send(exchange.call))
        finally:
            line.close()
        return self.replies[-1]
