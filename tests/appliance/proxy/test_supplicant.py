"""The proxy's own supplicant: its configuration follows the LDevID, and it is told."""

from __future__ import annotations

import asyncio
import shlex
import stat
import sys
from collections.abc import Awaitable, Callable

import pytest
from pydantic import ValidationError

from appliance.proxy import supplicant
from appliance.proxy.errors import SupplicantNotTold
from appliance.settings import ProxySettings
from est.exchange import Reply
from tests.appliance.proxy.campus import Campus, World
from tests.appliance.proxy.test_run import JSON, TRUST, running, with_campus, world

__all__ = ["world"]


def with_command(world: World, script: str, scenario: Callable[[Campus, ProxySettings], Awaitable[None]]) -> None:
    async def given(campus: Campus, settings: ProxySettings) -> None:
        words = shlex.join([sys.executable, "-c", script])
        await scenario(campus, settings.model_copy(update={"supplicant_command": words}))

    with_campus(world, given)


def test_the_configuration_has_the_ldevid_and_both_pins_and_the_command_runs_after_it(world: World) -> None:
    state = world.folder / "state"
    told = world.folder / "told"
    script = f"import shutil; shutil.copy({str(state / 'wpa_supplicant.conf')!r}, {str(told)!r})"

    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        async with running(settings, state) as proxy:
            event = await proxy.until("supplicant-told")
        assert event == {
            "event": "supplicant-told", "file": str(state / "wpa_supplicant.conf"), "by_command": True
        }  # fmt: skip

    with_command(world, script, scenario)
    lines = [line.strip() for line in told.read_text().splitlines()]
    for line in (
        'identity="anonymous@campus.example"',
        'domain_match="radius.campus.example"',
        f'ca_cert="{state}/anchors.pem"',
        f'client_cert="{state}/ldevid.pem"',
        f'private_key="{state}/ldevid.key.pem"',
    ):
        assert line in lines
    assert stat.S_IMODE((state / "wpa_supplicant.conf").stat().st_mode) == 0o600


def test_a_command_that_fails_is_told_and_tried_again(world: World) -> None:
    marker = world.folder / "second"
    script = (
        f"import pathlib, sys; file = pathlib.Path({str(marker)!r}); there = file.exists(); file.touch(); "
        "print('no'); sys.exit(not there)"
    )

    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        async with running(settings, world.folder / "state") as proxy:
            await proxy.until("supplicant-told")
        failed = [one for one in proxy.events if one["event"] == "supplicant-not-told"]
        assert [one["code"] for one in failed] == ["supplicant-not-told"]
        assert str(failed[0]["detail"]).endswith("ended with 1: no")

    with_command(world, script, scenario)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"{}",
        b"nothing",
        TRUST.replace(b"radius.campus.example", b'x\\"\\nblob'),
        TRUST.replace(b'"campus.example"', b"7"),
    ],
)
def test_names_that_cannot_stand_in_the_file_leave_none(world: World, body: bytes) -> None:
    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        campus.routes["/v1/trust"] = lambda *_: Reply(200, JSON, body=body)
        async with running(settings, world.folder / "state") as proxy:
            event = await proxy.until("supplicant-not-told")
        assert event["code"] == "supplicant-value-unusable"
        assert not (world.folder / "state" / "wpa_supplicant.conf").exists()

    with_campus(world, scenario)


def test_a_program_that_is_not_there_or_says_fail_counts_as_failed() -> None:
    for words in (["/nonexistent/wpa_cli"], [sys.executable, "-c", "print('Selected interface'); print('FAIL')"]):
        with pytest.raises(SupplicantNotTold):
            asyncio.run(supplicant.run_command(words))


def test_a_command_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supplicant, "COMMAND_SECONDS", 0.2)
    with pytest.raises(SupplicantNotTold, match="longer"):
        asyncio.run(supplicant.run_command([sys.executable, "-c", "import time; time.sleep(60)"]))


def test_a_command_line_that_does_not_read_stops_the_start() -> None:
    with pytest.raises(ValidationError, match="a command line is wanted"):
        ProxySettings(supplicant_command="wpa_cli 'reconfigure")
