"""An identity proxy lives through the change of its campus' root: a real appliance, the proxy's own renewal."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.proxy.bootstrap import Bootstrap
from appliance.proxy.connection import Target
from appliance.proxy.enrol import EnrolPhase
from appliance.proxy.link import ServerLink
from appliance.proxy.renew import Renewal
from appliance.proxy.report import Reporter
from appliance.proxy.state import ProxyState
from appliance.proxy.timing import Timing
from appliance.settings import ProxySettings
from est.certificates import is_self_signed
from est.exchange import Call
from tests.interop.est_clients import Site

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.xdist_group("est-clients")]
TIMING = Timing(connect=10, voucher=10, call=10)
CACERTS = Call("GET", "/.well-known/est/cacerts")


@pytest.mark.req("E-94", "E-95", "E-98", "E-102", "E-103")
def test_a_proxy_learns_the_new_root_at_its_renewal_or_from_a_link_and_stays(tmp_path: Path) -> None:
    site = Site.start(tmp_path)
    campus = site.campus
    host, _, port = site.address.rpartition(":")
    clock = SystemClock()

    async def enrolled(name: str) -> ProxyState:
        secret = tmp_path / f"{name}.secret"
        secret.write_text(site.credentials(name))
        secret.chmod(0o600)
        settings = ProxySettings(
            method="est", registrar_url=f"https://{site.address}", est_anchor=site.root, est_secret_file=secret,
        )  # fmt: skip
        state = ProxyState.open(tmp_path / name)
        await Bootstrap(settings, state, clock, timing=TIMING).run()
        return state

    def link_of(state: ProxyState) -> ServerLink:
        return ServerLink(state, Target(host, int(port)), clock, TIMING)

    async def renew(state: ProxyState) -> None:
        link = link_of(state)
        enrol = EnrolPhase(state, clock, Reporter("renewal", clock), TIMING)
        await Renewal(state, link, enrol, clock, TIMING, after=link.renewed).once()
        await link.close()

    async def talk(state: ProxyState) -> int:
        link = link_of(state)
        try:
            return (await link.send(CACERTS)).status
        finally:
            await link.close()

    async def story() -> None:
        old = campus.certificates_of("root")[0]
        quick, slow = await enrolled("quick"), await enrolled("slow")
        assert quick.anchors() == slow.anchors() == (old,)
        time.sleep(1.1)  # a new root must live longer, and dates have whole seconds
        campus.ask("ca.rollover_start", role="root")
        campus.ask("ca.rollover_advance", role="root")
        await renew(quick)
        (new,) = quick.anchors()
        assert new != old and is_self_signed(new)
        assert await talk(quick) == await talk(slow) == 200, "the old one serves; one proxy has the new root alone"
        campus.ask("ca.rollover_back", role="root")
        assert await talk(quick) == await talk(slow) == 200, "taken back: nobody is lost"
        campus.ask("ca.rollover_advance", role="root")
        campus.ask("ca.rollover_advance", role="root")
        assert await talk(quick) == await talk(slow) == 200, "the new one serves"
        await renew(slow)
        assert slow.anchors() == (new,)
        await renew(quick)
        campus.ask("ca.rollover_advance", role="root")
        assert await talk(quick) == await talk(slow) == 200, "the old one is gone"
        for state in (quick, slow):
            await renew(state)
            assert state.anchors() == (new,)
            state.close()

    try:
        asyncio.run(story())
    finally:
        campus.stop()
