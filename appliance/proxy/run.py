"""The identity proxy as one running thing: bootstrap if needed, then serve agents and keep the LDevID fresh.

Events go to one listener, in order: a `step` for everything that happens during bootstrap, `ready` once agents are
served, later `server-away`, `server-back`, `server-moved`, `ldevid-renewed`, `ldevid-renewal-failed`,
`ldevid-expired`, `supplicant-told`, `supplicant-not-told`, `spiffe-ready`, `spiffe-svid-issued`,
`spiffe-renewal-failed`, `stopped`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path

from cryptography import x509

from appliance.clock import Clock
from appliance.proxy.agent_api import ROUTES, AgentApi, Attester
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.callers import CallerBook
from appliance.proxy.connection import Target
from appliance.proxy.enrol import EnrolPhase
from appliance.proxy.errors import ProxyStateDamaged, SpiffeNotInstalled
from appliance.proxy.evidence import Device
from appliance.proxy.follow import Follower
from appliance.proxy.gateways import Gateways
from appliance.proxy.link import ServerLink
from appliance.proxy.lower_bound import LowerBound
from appliance.proxy.material import read_certificates
from appliance.proxy.renew import Renewal
from appliance.proxy.report import Listener, Reporter
from appliance.proxy.state import ProxyState
from appliance.proxy.supplicant import SupplicantKeeper, read_command
from appliance.proxy.timing import Timing
from appliance.proxy.tpm_quotes import TpmQuotes
from appliance.proxy.workers_line import WorkersLine
from appliance.settings import ProxySettings
from appliance.web.app import build_app
from appliance.web.limits import Bucket, Limits
from appliance.web.server import Listener as WebListener
from appliance.web.server import Timing as WebTiming
from brski.discovery import backoff_seconds
from est.errors import Refusal
from est.signer import KeySigner

log = logging.getLogger(__name__)

AGENT_RATE = Bucket(per_second=20.0, burst=100)
"""Requests of one local user at the Agent API."""
_DRAIN_SECONDS = 5.0


async def run_proxy(
    settings: ProxySettings, state_dir: Path, clock: Clock, tell: Listener, *, timing: Timing | None = None
) -> None:
    """Run until SIGTERM, SIGINT or cancellation; all three end it cleanly.

    `tell` gets every event, among them one `{"event": "ready", "pid", "proxy", "socket", "registrar", "method"}`.
    Raises ProxyStateLocked, ProxyStateDamaged, and what Bootstrap raises.
    """
    timing = timing or Timing()
    state = ProxyState.open(state_dir)
    try:
        async with _stopped_by_signals() as stop:
            running = asyncio.create_task(_run(settings, state, clock, tell, timing))
            waiting = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            finally:
                waiting.cancel()
                running.cancel()
                await asyncio.wait((running, waiting))
            if not running.cancelled():
                running.result()
        tell({"event": "stopped", "pid": os.getpid()})
    finally:
        state.close()


async def _run(settings: ProxySettings, state: ProxyState, own: Clock, tell: Listener, timing: Timing) -> None:
    bound = LowerBound(own, state)
    clock: Clock = own if settings.trust_clock else bound
    learn: Callable[[datetime | None], None] = _ignore if settings.trust_clock else bound.learn
    if not state.configured:
        await Bootstrap(settings, state, clock, listener=tell, timing=timing, learn=learn).run()
    record = state.record()
    attester = _Attesters(settings, state)
    target = Target(record.host, record.port, record.named)
    link = ServerLink(
        state,
        target,
        clock,
        timing,
        trust_clock=settings.trust_clock,
        on_change=lambda away, why: tell(
            {"event": "server-away", "because": why} if away else {"event": "server-back"}
        ),
        learn=learn,
    )
    enrol = EnrolPhase(
        state,
        clock,
        Reporter("renewal", clock),
        timing,
        clock_trusted=settings.trust_clock,
        label=settings.est_label,
        learn=learn,
    )

    def to_workers(target: Target) -> ServerLink:
        return ServerLink(state, target, clock, timing, trust_clock=settings.trust_clock, learn=learn)

    agents_line = WorkersLine(link, to_workers, clock)
    gateways = Gateways(link, state, clock, timing)
    supplicant = SupplicantKeeper(state, link, read_command(settings.supplicant_command), timing, tell)

    def renewed() -> None:
        link.renewed()
        agents_line.renewed()
        gateways.renewed()
        attester.load()
        supplicant.renewed()

    renewal = Renewal(state, link, enrol, clock, timing, after=renewed, on_event=tell)
    api = AgentApi(
        agents_line,
        attester.current,
        CallerBook(state, clock),
        clock,
        allow_root=settings.allow_root_agents,
        gateways=gateways,
        quotes=TpmQuotes(settings.tpm, settings.tpm_pcrs) if settings.tpm else None,
    )
    limits = Limits(clock, AGENT_RATE, AGENT_RATE)
    listener = WebListener(
        "agent",
        build_app("agent", api.endpoints(), routes=ROUTES, limits=limits),
        timing=WebTiming(max_connections=256),
    )
    socket = settings.socket or state.path("agent.sock")
    closing = contextlib.AsyncExitStack()
    await listener.open_unix(socket, settings.socket_mode)
    try:
        closing.push_async_callback(await _open_spiffe(settings, state, api, limits, clock, tell))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(renewal.run())
            tasks.create_task(supplicant.run())
            if record.method == "brski" and not record.named:
                follower = Follower(
                    state, link, settings.interfaces, clock, timing, tell, trust_clock=settings.trust_clock
                )
                tasks.create_task(follower.run())
            if not record.enroll_status_sent:
                tasks.create_task(_report_enrolment(enrol, target, timing))
            tell(
                {
                    "event": "ready",
                    "pid": os.getpid(),
                    "proxy": record.identifier,
                    "socket": str(socket),
                    "registrar": target.authority,
                    "method": record.method,
                }
            )
    except ExceptionGroup as group:
        raise group.exceptions[0] from group  # one task's own failure; the others were cancelled for it
    finally:
        await closing.aclose()
        await listener.close(_DRAIN_SECONDS)
        await gateways.close()
        await agents_line.close()
        await link.close()


async def _open_spiffe(
    settings: ProxySettings, state: ProxyState, api: AgentApi, limits: Limits, clock: Clock, tell: Listener
) -> Callable[[], Awaitable[None]]:
    """The SPIFFE Workload API, where it is wanted; answers what closes it.

    Raises SpiffeNotInstalled, WorkloadsMalformed, Conflict.
    """
    if settings.spiffe_workloads is None:
        return _nothing
    try:
        from appliance.proxy.spiffe.api import open_workload_api
    except ImportError as cause:
        raise SpiffeNotInstalled("the Workload API needs the package h2: install the extra spiffe") from cause
    server = await open_workload_api(
        settings.spiffe_workloads,
        settings.spiffe_socket or state.path("spiffe.sock"),
        settings.socket_mode,
        api,
        limits,
        clock,
        tell,
        allow_root=settings.allow_root_agents,
    )
    return server.close


async def _nothing() -> None:
    """Nothing was opened."""


def _ignore(_: datetime | None) -> None:
    """A clock that is right learns nothing from others."""


async def _report_enrolment(enrol: EnrolPhase, target: Target, timing: Timing) -> None:
    """The success that could not be told at once, or before a kill (RFC 8995, section 5.9.4)."""
    failures = 0
    while True:
        try:
            await enrol.report_success(target)
            return
        except Refusal as refusal:
            failures += 1
            pause = backoff_seconds(failures, first_seconds=timing.retry, ceiling=timing.longest_retry)
            log.warning("enrollstatus not delivered code=%s again_in=%.0fs", refusal.reason, pause)
            await asyncio.sleep(pause)


class _Attesters:
    """The key that signs evidence, which is that of the present LDevID."""

    def __init__(self, settings: ProxySettings, state: ProxyState) -> None:
        self._state = state
        record = state.record()
        idevid: x509.Certificate | None = None
        if record.method == "brski" and settings.idevid_certificate is not None:
            with contextlib.suppress(Refusal):  # a proxy that is configured works without its IDevID
                idevid = read_certificates(settings.idevid_certificate, "proxy.idevid_certificate")[0]
        try:
            self._device = Device.of(record.identifier, record.ueid, idevid)
        except ValueError as cause:
            raise ProxyStateDamaged("proxy.json does not read", file="proxy.json") from cause
        self._attester = Attester(self._device, KeySigner(state.ldevid_key()))

    def load(self) -> None:
        self._attester = Attester(self._device, KeySigner(self._state.ldevid_key()))

    def current(self) -> Attester:
        return self._attester


@contextlib.asynccontextmanager
async def _stopped_by_signals() -> AsyncIterator[asyncio.Event]:
    """An event that SIGTERM and SIGINT set; only the main thread can have handlers."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    taken: list[signal.Signals] = []
    for one in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(one, stop.set)
            taken.append(one)
    try:
        yield stop
    finally:
        for one in taken:
            loop.remove_signal_handler(one)
