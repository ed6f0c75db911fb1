"""From cable to VLAN on real ports: hostapd guards them, wpa_supplicant logs in, ping says where a host landed.

Agent hosts are machines of their own, but share this machine's file system with their proxy: an Agent API is a Unix
socket, so in a real campus an agent and its proxy are on one host.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lab import credentials
from lab.stage import Agent
from lab.wired import campus
from lab.wired.host import VLANS, Host
from lab.wired.stage import AGENTS, CHANGE_SECONDS, TLS, WiredStage

FAIL_MODES: Final[Mapping[str, tuple[str, str]]] = {
    "closed": ("nothing", "nothing"),
    "guest": ("guest", "guest"),
    "last-known-good": ("rnd", "hr"),
}
"""What a host of R&D and one of HR, let in before, reach when the decision is out of reach."""
_CHECKS: Final = (
    "port-closed-before", "onboarding-vlan", "proxy-zero-touch", "proxy-infrastructure-vlan", "agent-vlan-rnd",
    "agent-vlan-hr", "unmapped-guest-vlan", "same-mac-new-identity-moves", "owner-moves-live", "revoked-disconnected",
    "link-loss-closes", "radius-down-closed",
)  # fmt: skip
_HOOK_CHECKS: Final = (*(f"hook-down-fail-mode-{mode}" for mode in FAIL_MODES), "hook-down-fail-mode")


def checks_of(engine: str) -> tuple[str, ...]:
    """Every promise of this story; a hook can be down only where RADIUS is not the appliance itself."""
    return _CHECKS if engine == "embedded" else _CHECKS + _HOOK_CHECKS


def without(asked: str | None, no_campus: str, no_freeradius: str) -> dict[str, str]:
    """Checks that cannot be made here, and why. `asked`: the engine that was named, None for FreeRADIUS where it is.

    `no_campus` and `no_freeradius` say what is missing for the ports and for FreeRADIUS; empty if nothing is. An
    engine that nobody named gives way to the embedded one, and takes only the checks of the hook with it.
    """
    skipped: dict[str, str] = {}
    for name in checks_of(asked or "freeradius"):
        lacks_freeradius = asked == "freeradius" or (asked is None and name in _HOOK_CHECKS)
        why = [no_campus, no_freeradius if lacks_freeradius else ""]
        if any(why):
            skipped[name] = "; ".join(filter(None, why))
    return skipped


class WiredStory:
    """The story of this module."""

    def __init__(self, stage: WiredStage) -> None:
        self.stage = stage

    def tell(self) -> None:
        """The whole way, then what may go wrong."""
        self.stage.stand_up()
        self.look_at_closed_ports()
        self.take_in_the_proxy()
        self.give_agents_their_credentials()
        self.log_in()
        self.change_identity()
        self.move_owner()
        self.revoke()
        self.lose_the_link()
        self.lose_radius()
        self.lose_the_hook()

    def look_at_closed_ports(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("Three hosts are plugged in. Nobody has logged in."):
            desks = [stage.host(name) for name in campus.HOSTS[1:]]
            for desk in desks:
                desk.cable.plug()
            seen = stage.at_once([lambda desk=desk: stage.port_state(desk) for desk in desks])  # type: ignore[misc]
            expected = "reaches nothing, hostapd: unknown"
            story.check("port-closed-before", "; ".join([expected] * 3), "; ".join(seen))

    def take_in_the_proxy(self) -> None:
        stage, story = self.stage, self.stage.story
        host = stage.host("proxy")
        with story.step("A proxy is plugged into a fresh port. It knows only its IDevID and its maker's anchors."):
            proxy = stage.start_proxy(host)
            begun = time.monotonic()
            host.cable.plug()
            stage.lands("onboarding-vlan", "onboarding", host)
            ready = proxy.wait_for("ready", 60)
            stage.socket = Path(ready["socket"])
            found = proxy.wait_for("step", 1, {"step": "registrars-found"})
            pledge = stage.admin("pledges", "show", "acme-0001")
            subject = credentials.verified_uri(
                stage.out / "proxy" / "ldevid.pem", stage.ca("devices"), stage.ca("root")
            )
            port = stage.listeners["device"].rpartition(":")[2]
            story.check(
                "proxy-zero-touch",
                f"found by mdns at 10.66.{VLANS['onboarding']}.1:{port}, LDevID of {ready['proxy']}, confirmed",
                f"found by {found['how']} at {ready['registrar']}, LDevID of {subject}, {pledge['state']}",
            )
            story.say(f"  from cable to LDevID: {time.monotonic() - begun:.1f} s")
        with story.step("The proxy tells its supplicant, which logs in with the LDevID."):
            proxy.wait_for("supplicant-told", 20)
            seen = []
            for version in reversed(TLS):  # 1.3 is what the proxy wrote
                if version != "1.3":
                    host.use_tls(version)
                seen.append(stage.landing(host, "infrastructure"))
            story.check("proxy-infrastructure-vlan", _both("infrastructure", reversed(TLS)), "; ".join(seen))
            moved = proxy.wait_for("server-moved", 30)
            story.say(f"  the proxy found its server again, at {moved['registrar']}")

    def give_agents_their_credentials(self) -> None:
        stage = self.stage
        with stage.story.step("Agents ask their proxy, which is in the infrastructure VLAN now; owners sign."):

            def ask(name: str, owner: str) -> None:
                agent = Agent(name, owner, stage.out / "agents" / name)
                stage.request(agent, stage.owner_command(owner))
                stage.agents[name] = agent

            stage.at_once([lambda one=one: ask(*one) for one in AGENTS.items()])  # type: ignore[misc]
            stage.story.say(f"  {', '.join(f'{name} for {owner}' for name, owner in AGENTS.items())}")
            stage.story.say("  (their hosts share the file system with the proxy: an Agent API is a Unix socket)")

    def log_in(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("The agents' hosts log in: each lands where its owner's department belongs."):
            plan = {
                "agent-vlan-rnd": ("desk-a", "notes", "rnd"),
                "agent-vlan-hr": ("desk-b", "payroll", "hr"),
                "unmapped-guest-vlan": ("desk-c", "stars", "guest"),
            }
            seen: dict[str, list[str]] = {name: [] for name in plan}
            for version in TLS:
                for desk, agent, _ in plan.values():
                    stage.host(desk).login(stage.block(agent), version)
                for name, (desk, _, vlan) in plan.items():
                    seen[name].append(stage.landing(stage.host(desk), vlan))
            for name, (_, _, vlan) in plan.items():
                story.check(name, _both(vlan), "; ".join(seen[name]))

    def change_identity(self) -> None:
        stage, story = self.stage, self.stage.story
        desk = stage.host("desk-a")
        with story.step("Same cable, same MAC address, another agent: the port follows the identity."):
            seen = []
            for version in TLS:
                for agent, vlan in (("stars", "guest"), ("notes", "rnd")):
                    desk.login(stage.block(agent), version)
                    seen.append(stage.landing(desk, vlan))
            expected = "; ".join(f"TLS {version}: {vlan}" for version in TLS for vlan in ("guest", "rnd"))
            story.check("same-mac-new-identity-moves", expected, "; ".join(seen))

    def move_owner(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("Alice changes her department while her agents' hosts are on line. Nobody touches the hosts."):
            before = stage.log_in_both("notes", "lab-book", "rnd", "rnd")
            stage.admin("owners", "move", "alice", "--department", "HR")
            there = stage.both(stage.within, "hr", "hr")
            stage.admin("owners", "move", "alice", "--department", "R&D")
            back = stage.both(stage.within, "rnd", "rnd")
            seen = [f"{one}, then {two}, then {three}" for one, two, three in zip(before, there, back, strict=True)]
            limit = f"within {CHANGE_SECONDS:.0f} s"
            expected = "; ".join(f"TLS {version}: rnd, then hr {limit}, then rnd {limit}" for version in TLS)
            story.check("owner-moves-live", expected, "; ".join(seen))
            story.say(f"  seen by ping after {max(stage.took):.1f} s at the latest")

    def revoke(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("Two agents are revoked while their hosts are on line."):
            before = stage.log_in_both("travel", "lab-book", "rnd", "rnd")
            stage.at_once([
                lambda name=name: stage.admin(  # type: ignore[misc]
                    "agents", "revoke", credentials.uri(stage.agents[name].chain), "--reason", "retired"
                )
                for name in ("travel", "lab-book")
            ])  # fmt: skip
            after = stage.both(lambda desk: f"{stage.within(desk, 'nothing')}, hostapd: {stage.campus.hostapd(desk)}")
            stage.both(Host.stop_supplicant)
            seen = [f"{one}, then {two}" for one, two in zip(before, after, strict=True)]
            closed = f"nothing within {CHANGE_SECONDS:.0f} s, hostapd: not authorized"
            story.check(
                "revoked-disconnected", "; ".join(f"TLS {version}: rnd, then {closed}" for version in TLS),
                "; ".join(seen),
            )  # fmt: skip

    def lose_the_link(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("Cables are pulled and put back; whoever comes then has not logged in."):
            before = stage.log_in_both("notes", "payroll", "rnd", "hr")
            stage.both(Host.stop_supplicant)  # hostapd notices neither this nor the cable
            still = stage.both(Host.reach)
            stage.both(stage.fresh)
            time.sleep(0.5)
            after = stage.both(stage.port_state)
            expected = [
                f"TLS {version}: {vlan}; without supplicant: {vlan}; new cable: reaches nothing, hostapd: unknown"
                for version, vlan in zip(TLS, ("rnd", "hr"), strict=True)
            ]
            seen = [
                f"{one}; without supplicant: {two}; new cable: {three}"
                for one, two, three in zip(before, still, after, strict=True)
            ]
            story.check("link-loss-closes", "; ".join(expected), "; ".join(seen))

    def lose_radius(self) -> None:
        stage, story = self.stage, self.stage.story
        with story.step("The RADIUS server is silent: nobody gets in. It comes back: the login goes on."):
            stage.both(stage.fresh)
            with stage.paused(radius=True):
                stage.begin_both("notes", "stars")
                time.sleep(4.0)
                silent = stage.both(stage.port_state)
            back = stage.both(stage.landing, "rnd", "guest")
            expected = [
                f"silent: reaches nothing, hostapd: not authorized; back: TLS {version}: {vlan}"
                for version, vlan in zip(TLS, ("rnd", "guest"), strict=True)
            ]
            seen = [f"silent: {one}; back: {two}" for one, two in zip(silent, back, strict=True)]
            story.check("radius-down-closed", "; ".join(expected), "; ".join(seen))

    def lose_the_hook(self) -> None:
        stage, story = self.stage, self.stage.story
        if stage.engine == "embedded":
            story.say("\n  no hook can be down here: the embedded server decides in its own process")
            return
        results: list[bool] = []
        for mode, vlans in FAIL_MODES.items():
            with story.step(f"The decision is out of reach, fail mode {mode}: FreeRADIUS answers alone."):
                results.append(self.hook_down(mode, vlans))
        story.check("hook-down-fail-mode", "3 of 3 modes as written", f"{sum(results)} of 3 modes as written")

    def hook_down(self, mode: str, vlans: tuple[str, str]) -> bool:
        """Each mode is a configuration of its own, so the appliance starts anew with it."""
        stage = self.stage
        assert stage.server is not None
        stage.server.stop()
        stage.start_appliance(f"--set=radius.fail_mode={mode}")
        stage.both(stage.fresh)
        before = stage.log_in_both("notes", "payroll", "rnd", "hr")
        stage.both(stage.fresh)
        with stage.paused(radius=False):
            stage.begin_both("notes", "payroll")
            if "nothing" in vlans:
                time.sleep(3.0)
            after = stage.both(stage.where, *vlans)
        seen = [f"{one}, hook down: {two}" for one, two in zip(before, after, strict=True)]
        expected = [
            f"TLS {version}: {vlan}, hook down: {then}"
            for version, vlan, then in zip(TLS, ("rnd", "hr"), vlans, strict=True)
        ]
        return stage.story.check(f"hook-down-fail-mode-{mode}", "; ".join(expected), "; ".join(seen))


def _both(vlan: str, versions: Any = TLS) -> str:
    return "; ".join(f"TLS {version}: {vlan}" for version in versions)
