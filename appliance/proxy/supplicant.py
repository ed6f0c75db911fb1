"""The proxy's own way through a guarded port: a wpa_supplicant configuration for the LDevID, and word that it is there.

A port guarded by 802.1X lets an unknown device into an onboarding network only. Once the LDevID is there the supplicant
logs in with it, and the port moves. The configuration is STATE/wpa_supplicant.conf; the command
(`proxy.supplicant_command`) tells the supplicant after the first LDevID and after every renewal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
from collections.abc import Sequence

from appliance.proxy.errors import ProxyError, SupplicantNotTold
from appliance.proxy.link import ServerLink
from appliance.proxy.report import Listener
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from appliance.supplicant import SupplicantValueUnusable, supplicant_block
from brski.discovery import backoff_seconds
from est.errors import EstError, Refusal
from est.exchange import Call
from est.transfer import read_json

log = logging.getLogger(__name__)

FILE = "wpa_supplicant.conf"
COMMAND_SECONDS = 30.0
SETTLE_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""After the supplicant was told, the port may move to a network where the server is at another place: when to look, the
last time after the 60 s that a supplicant waits after a failed login."""
_JSON = "application/json"
_MAX_TRUST_BYTES = 65_536


class SupplicantKeeper:
    """Writes the configuration and runs the command; tells `supplicant-told` and `supplicant-not-told`."""

    def __init__(
        self, state: ProxyState, link: ServerLink, command: Sequence[str], timing: Timing, tell: Listener
    ) -> None:
        self._state = state
        self._link = link
        self._command = tuple(command)
        self._timing = timing
        self._tell = tell
        self._renewed = asyncio.Event()
        self._renewed.set()

    def renewed(self) -> None:
        """A new LDevID is in place."""
        self._renewed.set()

    async def run(self) -> None:
        """Ends by cancellation only."""
        while True:
            await self._renewed.wait()
            self._renewed.clear()
            failures = 0
            while True:
                try:
                    await self._once()
                    break
                except Refusal as refusal:
                    failures += 1
                    pause = backoff_seconds(
                        failures, first_seconds=self._timing.retry, ceiling=self._timing.longest_retry
                    )
                    log.warning("supplicant not told code=%s detail=%r again_in=%.0fs",
                                refusal.reason, refusal.detail, pause)  # fmt: skip
                    self._tell({"event": "supplicant-not-told", "code": refusal.reason, "detail": refusal.detail})
                    await asyncio.sleep(pause)

    async def _once(self) -> None:
        server_name, trust_domain = await self._names()
        files = self._state.credential()
        block = supplicant_block(
            server_name,
            trust_domain,
            root=self._state.path("anchors.pem").absolute(),
            chain=files.certificate.absolute(),
            key=files.key.absolute(),
        )
        self._state.write(FILE, block.encode())
        if self._command:
            await run_command(self._command)
        self._tell({"event": "supplicant-told", "file": str(self._state.path(FILE)), "by_command": bool(self._command)})
        if self._command:
            await self._settle()

    async def _names(self) -> tuple[str, str]:
        reply = await self._link.send(Call("GET", "/v1/trust", headers={"accept": _JSON}))
        try:
            value = read_json(reply.body, max_bytes=_MAX_TRUST_BYTES, max_depth=8)
        except EstError as cause:
            raise SupplicantValueUnusable("the server's answer does not read", name="trust") from cause
        names = [value.get(one) if isinstance(value, dict) else None for one in ("radius_server_name", "trust_domain")]
        if reply.status != 200 or not all(isinstance(one, str) for one in names):
            raise SupplicantValueUnusable("the server names no RADIUS server", name="trust")
        return str(names[0]), str(names[1])

    async def _settle(self) -> None:
        self._link.renewed()  # connections through the port as it was
        for seconds in SETTLE_SECONDS:
            await asyncio.sleep(seconds)
            with contextlib.suppress(ProxyError):  # open() itself has those look who can find the server elsewhere
                await (await self._link.open()).close()


def read_command(text: str) -> tuple[str, ...]:
    """A command line in words, as a shell would split it; no shell runs it. Raises ValueError."""
    return tuple(shlex.split(text))


async def run_command(words: Sequence[str]) -> None:
    """Run it to its end. Raises SupplicantNotTold."""
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as cause:
        raise SupplicantNotTold(f"{words[0]}: {cause.strerror}", status=127) from cause
    try:
        output, _ = await asyncio.wait_for(process.communicate(), COMMAND_SECONDS)
    except TimeoutError:
        raise SupplicantNotTold(f"{words[0]} took longer than {COMMAND_SECONDS:.0f} s", status=-1) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = output.decode("utf-8", "replace").strip().splitlines()
    if process.returncode or "FAIL" in said:  # wpa_cli says FAIL and ends with 0
        last = said[-1][:200] if said else "no output"
        raise SupplicantNotTold(f"{words[0]} ended with {process.returncode}: {last}", status=process.returncode)
