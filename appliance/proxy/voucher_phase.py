"""From an address to a registrar that the manufacturer vouches for: one attempt, one connection, one nonce.

RFC 8995, sections 5.1 to 5.7. Until `accept_voucher` has returned nothing that the peer sent is kept, and only the two
BRSKI calls go out.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import Clock
from appliance.proxy.connection import Connection, Target, Trust, open_provisional
from appliance.proxy.errors import ServerUntrusted
from appliance.proxy.line import Line
from appliance.proxy.report import Reporter
from appliance.proxy.state import ClientFiles
from appliance.proxy.timing import Timing
from brski.errors import RegistrarRefused, VoucherPending
from brski.paths import VOUCHER_CMS_JSON
from brski.pledge import Pledge, is_given_up
from brski.voucher import Voucher
from est.errors import Refusal
from est.exchange import Call

NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class Imprint:
    """A registrar that a valid voucher vouches for, on a line that is no longer provisional and stays with it."""

    line: Line
    target: Target
    voucher: Voucher
    request: bytes = field(repr=False)
    sealed: bytes = field(repr=False)
    media_type: str


class VoucherPhase:
    """Makes attempts for one pledge, asking in the format `media_type`. `sleep` is asyncio.sleep, or a test's own."""

    def __init__(
        self,
        pledge: Pledge,
        client: ClientFiles,
        clock: Clock,
        reporter: Reporter,
        timing: Timing,
        *,
        media_type: str = VOUCHER_CMS_JSON,
        clock_trusted: bool = True,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._pledge = pledge
        self._client = client
        self._clock = clock
        self._reporter = reporter
        self._timing = timing
        self._media_type = media_type
        self._clock_trusted = clock_trusted
        self._sleep = sleep

    async def attempt(self, target: Target, progress: Callable[[], None] | None = None) -> Imprint:
        """Ask the registrar at `target` for a voucher and check it; the nonce is new for every attempt.

        `progress` is called whenever something moved. Raises ProxyError and BrskiError leaves; the connection is closed
        then, and the registrar was told why if the voucher was at fault (RFC 8995, section 5.6.2).
        """
        connection = await open_provisional(target, self._client, seconds=self._timing.connect)
        line = Line(
            connection,
            lambda: _reopen(target, self._client, connection, self._timing.connect),
            self._timing.resume,
            on_loss=lambda loss: self._reporter.refused("connection-lost", loss, server=target.authority),
            progress=progress,
        )
        try:
            self._reporter.step("server-connected", server=target.authority, subject=_subject(connection))
            call = self._pledge.voucher_request(
                connection.leaf,
                nonce=secrets.token_bytes(NONCE_BYTES),
                now=self._clock.now(),
                media_type=self._media_type,
            )
            self._reporter.step("voucher-requested", server=target.authority)
            return await self._converse(line, target, call)
        except BaseException:  # whatever it was, no provisional connection outlives the attempt
            await line.connection.close()
            raise

    async def _converse(self, line: Line, target: Target, call: Call) -> Imprint:
        first_sent = self._clock.now()
        while True:
            reply = await line.exchange(call, seconds=self._timing.voucher)
            now = self._clock.now()
            at = now if self._clock_trusted else None
            try:
                voucher = self._pledge.accept_voucher(reply, call, line.connection.chain, now=now)
                pin = voucher.pin()
                line.connection.upgrade(pin, at=at)
                break
            except VoucherPending as pending:
                if is_given_up(first_sent, now):
                    raise
                wait = min(pending.retry_after_seconds, self._timing.longest_pending_wait)
                self._reporter.step("voucher-pending", "voucher-pending", server=target.authority, wait_seconds=wait)
                await self._sleep(wait)
            except RegistrarRefused:
                raise
            except Refusal as refusal:
                await self._complain(line, target, refusal)
                raise
        self._reporter.step(
            "voucher-verified",
            server=target.authority,
            assertion=voucher.assertion.value,
            serial_number=voucher.serial_number,
        )
        provisional = line.reopen

        async def reopen_trusted() -> Connection:
            """Held to the same certificate and the same pin (RFC 8995, section 5)."""
            connection = await provisional()
            connection.upgrade(pin, at=at)
            return connection

        line.reopen, line.patience = reopen_trusted, self._timing.resume_enrol
        # what the registrar answers is of no interest (RFC 8995, section 5.7)
        await line.exchange(self._pledge.voucher_status(True), seconds=self._timing.call)
        self._reporter.step("voucher-status-sent", server=target.authority, status=True)
        return Imprint(line, target, voucher, call.body, reply.body, call.media_type)

    async def _complain(self, line: Line, target: Target, refusal: Refusal) -> None:
        """Report the bad voucher; on the same connection, or if the peer has closed it, on another to the same peer.

        Whether that works changes nothing.
        """
        self._reporter.refused("voucher-refused", refusal, server=target.authority)
        with contextlib.suppress(Refusal):
            line.connection.refuse()
            await line.restore()
            line.connection.refuse()
            await line.connection.exchange(
                self._pledge.voucher_status(False, refusal.reason), seconds=self._timing.call
            )
            self._reporter.step("voucher-status-sent", server=target.authority, status=False)


async def _reopen(target: Target, client: ClientFiles, first: Connection, seconds: float) -> Connection:
    """Not persistent: the very same certificate as before, or nothing (RFC 8995, section 5)."""
    connection = await open_provisional(target, client, seconds=seconds)
    if connection.leaf.public_bytes(Encoding.DER) != first.leaf.public_bytes(Encoding.DER):
        await connection.close()
        raise ServerUntrusted("the registrar shows another certificate than on the first connection")
    return connection


def _subject(connection: Connection) -> str:
    """The unverified subject, for the operator's eyes only."""
    assert connection.trust is Trust.PROVISIONAL
    try:
        return connection.leaf.subject.rfc4514_string()[:120]
    except ValueError:
        return ""
