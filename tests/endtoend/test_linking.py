"""A proxy binds what it asks for to its connection: a real appliance that takes nothing else."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
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
from tests.interop.est_clients import Site

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("est-clients")]
TIMING = Timing(connect=10, voucher=10, call=10)


@pytest.mark.req("E-15", "E-75")
def test_first_request_and_renewal_of_a_proxy_are_linked_where_the_site_demands_it(tmp_path: Path) -> None:
    site, clock = Site.start(tmp_path, "est.linking=required"), SystemClock()
    host, _, port = site.address.rpartition(":")

    async def story() -> None:
        secret = tmp_path / "secret"
        secret.write_text(site.credentials("rack-7"))
        secret.chmod(0o600)
        settings = ProxySettings(
            method="est", registrar_url=f"https://{site.address}", est_anchor=site.root, est_secret_file=secret
        )
        state = ProxyState.open(tmp_path / "state")
        await Bootstrap(settings, state, clock, timing=TIMING).run()
        link = ServerLink(state, Target(host, int(port)), clock, TIMING)
        enrol = EnrolPhase(state, clock, Reporter("renewal", clock), TIMING)
        await Renewal(state, link, enrol, clock, TIMING, after=link.renewed).once()
        await link.close()
        state.close()

    try:
        asyncio.run(story())
    finally:
        site.campus.stop()
    with closing(sqlite3.connect(site.campus.home / "appliance.db")) as database:
        rows = database.execute("SELECT body FROM audit WHERE event LIKE 'ldevid-%' ORDER BY seq").fetchall()
    told = [json.loads(body) for (body,) in rows]
    assert [one["event"] for one in told] == ["ldevid-issued", "ldevid-renewed"]
    assert all(one["fields"]["linked"] for one in told)
