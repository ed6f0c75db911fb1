"""The file of workloads, and the proxy that is given one."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.proxy.errors import WorkloadsMalformed
from appliance.proxy.spiffe.messages import Code
from appliance.proxy.spiffe.workloads import read_workloads
from appliance.settings import ProxySettings
from tests.appliance.proxy.campus import Campus, World
from tests.appliance.proxy.spiffe.wire import refused
from tests.appliance.proxy.test_agent_api import AGENT, OWNER
from tests.appliance.proxy.test_run import running, with_campus, world

__all__ = ["world"]

DIGEST, HASH = "ab" * 32, "A" * 43
GOOD = f"""[[workload]]
agent = "{AGENT}"
owner = "{OWNER}"
uid = 1000
executables = ["{DIGEST}"]
standing = ["{HASH}"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "workloads.toml"
    path.write_text(text)
    return path


def test_a_workload_has_a_user_programs_an_agent_and_standing_approvals(tmp_path: Path) -> None:
    (one,) = read_workloads(written(tmp_path, GOOD))
    assert (one.agent, one.owner, one.uid, one.ttl_seconds) == (AGENT, OWNER, 1000, 28_800)
    assert one.executables == {bytes.fromhex(DIGEST)}
    assert one.standing_tokens() == (HASH,)


def test_a_standing_approval_in_a_file_is_read_anew_each_time(tmp_path: Path) -> None:
    file = tmp_path / "standing.jws"
    (one,) = read_workloads(written(tmp_path, GOOD.replace(HASH, str(file))))
    with pytest.raises(WorkloadsMalformed, match="standing"):
        one.standing_tokens()
    for text in ("a.b.c", "d.e.f"):
        file.write_text(text + "\n")
        assert one.standing_tokens() == (text,)


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "other = 1", "workload = 1", "workload = []", GOOD + "more = 1\n", GOOD + GOOD,
        GOOD + GOOD.replace(DIGEST, "cd" * 32),
        *(GOOD.replace(line, "") for line in GOOD.splitlines(keepends=True)[1:]),
        GOOD.replace(AGENT, OWNER), GOOD.replace(OWNER, "x"), GOOD.replace("1000", "-1"), GOOD.replace("1000", "true"),
        GOOD.replace("1000", "4294967295"), GOOD.replace(DIGEST, DIGEST.upper()), GOOD.replace(DIGEST, "abab"),
        GOOD.replace(f'["{HASH}"]', "[]"), GOOD.replace(f'["{HASH}"]', "[1]"), GOOD + "ttl_seconds = 0\n",
    ],
)  # fmt: skip
def test_a_file_that_says_something_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(WorkloadsMalformed):
        read_workloads(written(tmp_path, text))


def test_a_proxy_serves_it_where_it_is_wanted_and_not_otherwise(world: World) -> None:
    state = world.folder / "state"

    async def scenario(campus: Campus, settings: ProxySettings) -> None:
        async with running(settings, state) as proxy:
            await proxy.until("ready")
            assert not (state / "spiffe.sock").exists()
        wanted = settings.model_copy(update={"spiffe_workloads": written(world.folder, GOOD)})
        async with running(wanted, state) as proxy:
            await proxy.until("ready")
            (told,) = [one for one in proxy.events if one["event"] == "spiffe-ready"]
            assert told == {"event": "spiffe-ready", "socket": str(state / "spiffe.sock"), "workloads": 1}
            assert (await refused(state / "spiffe.sock"))[0] == Code.PERMISSION_DENIED
        assert not (state / "spiffe.sock").exists()
        async with running(wanted.model_copy(update={"spiffe_workloads": world.folder / "none"}), state) as proxy:
            with pytest.raises(WorkloadsMalformed):
                await proxy.until("ready")

    with_campus(world, scenario)
