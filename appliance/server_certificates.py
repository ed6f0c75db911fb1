"""The appliance renews the certificates of its own servers: registrar, RADIUS server, console and decision port.

At two thirds of their life by itself, or when an administrator asks. The key stays: a MASA may have pinned the
registrar's key in a voucher that a device still holds, and with one key a renewal is one file replaced in one step, so
that no kill leaves a certificate beside another's key. Whoever serves with a certificate is told of the new one and
takes it for the next handshake; nothing is restarted but a FreeRADIUS, which reads its files only when it starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from cryptography import x509

from appliance.audit import APPLIANCE, Actor
from appliance.ca import CertificateAuthority, Slot
from appliance.checks import warning_days
from appliance.clock import Clock
from appliance.errors import NotFound
from appliance.hierarchy import SERVERS, ServerIdentity, ServerName, server_shape
from appliance.keys import write_certificates
from appliance.settings import Settings
from est.errors import Refusal
from est.profiles import Shape

_log = logging.getLogger(__name__)
FRACTION = 2 / 3
_LOOK_SECONDS = 600.0
Listener = Callable[[ServerIdentity], Awaitable[None] | None]


class ServerCertificates:
    """The servers' identities as they are now; run() keeps them young."""

    def __init__(
        self,
        servers: Mapping[ServerName, ServerIdentity],
        *,
        ca: CertificateAuthority,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self._servers = dict(servers)
        self._ca = ca
        self._settings = settings
        self._clock = clock
        self._listeners: list[tuple[ServerName, Listener]] = []
        self._turn = asyncio.Lock()
        self._warned: dict[tuple[str, int], int] = {}

    def __getitem__(self, name: ServerName) -> ServerIdentity:
        return self._servers[name]

    def items(self) -> list[tuple[ServerName, ServerIdentity]]:
        """Every server with its identity."""
        return list(self._servers.items())

    def follow(self, name: ServerName, listener: Listener) -> None:
        """Tell `listener` of every identity that this server gets from now on."""
        self._listeners.append((name, listener))

    async def renew(self, names: Sequence[str] = (), *, actor: Actor) -> list[dict[str, Any]]:
        """New certificates for these servers, or for all; answers what each got.

        Raises NotFound, and what CertificateAuthority.issue() refuses; those before it are renewed then.
        """
        for name in names:
            if name not in SERVERS:
                raise NotFound(f"no server {name}; there are {', '.join(SERVERS)}")
        async with self._turn:
            return [await self._renew(name, actor) for name in SERVERS if not names or name in names]

    async def renew_due(self) -> list[dict[str, Any]]:
        """Renew what is past two thirds of its life."""
        async with self._turn:
            return [await self._renew(name, APPLIANCE) for name in SERVERS if self._is_due(self._servers[name])]

    async def settle(self) -> None:
        """Make the servers' files what the CAs are now: under the CA that signs, with the chain that clients need.

        Does nothing to what is so already, so a kill between a change of the CAs and this one is made good by the next
        start.
        """
        async with self._turn:
            for name in SERVERS:
                own = self._servers[name]
                if self._ca.issuer_label(own.certificate) != self._ca.issuing(SERVERS[name]).label:
                    await self._renew(name, APPLIANCE)
                elif own.chain != self._chain(name):
                    await self._adopt(name, own.certificate)

    async def run(self) -> None:
        """Look every ten minutes until cancelled: renew, and warn of what nothing here renews."""
        while True:
            try:
                await self.renew_due()
            except (Refusal, OSError) as error:  # disk full, token away, CA at its end: the old one does until then
                _log.error("event=server-certificate-not-renewed error=%r", error)
            self._warn()
            await asyncio.sleep(_LOOK_SECONDS)

    def _is_due(self, own: ServerIdentity) -> bool:
        begin, end = own.certificate.not_valid_before_utc, own.certificate.not_valid_after_utc
        issuer_end = self._ca.issuing(SERVERS[own.name]).certificate.not_valid_after_utc
        # one that ends with its CA gets no longer by being made anew
        return end < issuer_end and self._clock.now() >= begin + (end - begin) * FRACTION

    def _chain(self, name: ServerName) -> tuple[x509.Certificate, ...]:
        issuing, *rest = self._ca.chain(SERVERS[name])
        return issuing, *self._ca.server_links, *rest

    async def _renew(self, name: ServerName, actor: Actor) -> dict[str, Any]:
        own, role = self._servers[name], SERVERS[name]
        end = self._ca.issuing(role).certificate.not_valid_after_utc
        life = min(timedelta(days=self._settings.ca.server_days), end - self._clock.now())

        def shape(slot: Slot) -> Shape:
            return server_shape(name, slot.terms(life), own.key.public_key(), self._settings)

        issued = await self._ca.issue(
            role, shape, row={"profile": name}, actor=actor, event="server-certificate-issued", fields={"name": name}
        )
        await self._adopt(name, issued.certificate)
        until = issued.certificate.not_valid_after_utc
        _log.info("event=server-certificate-renewed server=%s serial=%x until=%s", name, issued.serial, until)
        return {"server": name, "serial": f"{issued.serial:x}", "not_after": until.isoformat()}

    async def _adopt(self, name: ServerName, certificate: x509.Certificate) -> None:
        """On the disk first, so that what is shown to the world is there after a restart too."""
        old, chain = self._servers[name], self._chain(name)
        own = ServerIdentity(name, certificate, chain, old.key, old.certificate_file, old.key_file)
        await asyncio.to_thread(write_certificates, own.certificate_file, (certificate, *own.sent), replace=True)
        self._servers[name] = own
        for wanted, listener in self._listeners:
            if wanted == name:
                done = listener(own)
                if done is not None:
                    await done

    def _warn(self) -> None:
        """One line in the log when a certificate passes 30, 14, 7 and 1 days before its end."""
        watched = [*self._ca.certificates.items(), *((name, own.certificate) for name, own in self._servers.items())]
        for name, certificate in watched:
            left = certificate.not_valid_after_utc - self._clock.now()
            days = warning_days(left)
            key = (name, certificate.serial_number)
            if days is not None and self._warned.get(key) != days:
                self._warned[key] = days
                _log.warning(
                    "event=certificate-ends name=%s days=%d until=%s", name, days, certificate.not_valid_after_utc
                )
