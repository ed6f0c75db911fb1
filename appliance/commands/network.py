"""Verbs about network access: RADIUS and NAS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from appliance.commands.invocation import ask, group, invocation, loaded, read_text, show

radius = group("FreeRADIUS: render, run and check its configuration.")
nas = group("Switches and access points that may ask.")
sessions = group("Who is at which port now; take them off or ask them anew.")


@radius.command("render")
def radius_render(folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty or rendered folder.")]) -> None:
    """Write a complete FreeRADIUS configuration."""
    show(ask("radius.render", folder=str(folder.absolute())))


@radius.command("check")
def radius_check(
    folder: Annotated[Path | None, typer.Option("--dir", help="Folder to check; default: a fresh rendering.")] = None,
) -> None:
    """Let FreeRADIUS check its configuration."""
    show(ask("radius.check", folder=str(folder.absolute()) if folder else ""))


@radius.command("run")
def radius_run(
    folder: Annotated[Path | None, typer.Option("--dir", help="Where to render; default: HOME/radius.")] = None,
) -> None:
    """Render, check, start and supervise FreeRADIUS in the foreground; SIGTERM stops it.

    It follows the appliance: when NAS, their certificates, the policy or our own certificates change, FreeRADIUS gets a
    new configuration, checked before, and a restart.
    """
    from appliance.access.raddb_folder import default_folder, run_as
    from appliance.access.remote import RADDB, SITE_FILE, Remote
    from appliance.access.running import run_here
    from appliance.home import is_locked
    from appliance.log import set_up_logging
    from appliance.signals import until_signalled

    settings = loaded().settings
    set_up_logging(settings.log)
    if folder is not None and (folder / SITE_FILE).exists():  # a machine that was enrolled
        remote = Remote(folder.absolute())
        site, place = remote.site, folder.absolute() / RADDB
        who = run_as(site.user)
        rendered = {"listen": f"{site.host}:{site.port}", "folder": str(place)}
        refresh: Callable[[], bool] = remote.refresh
        every = 15.0
    else:
        who = run_as(settings.radius.user)
        place = (folder or default_folder(settings.home, who)).absolute()
        rendered = ask("radius.render", folder=str(place))
        every = 5.0

        def refresh() -> bool:
            return is_locked(settings.home) and bool(ask("radius.refresh", folder=str(place))["changed"])

    def ready() -> None:
        event = {"event": "ready", "radius": rendered["listen"], "folder": rendered["folder"]}
        print(json.dumps(event) if invocation().output == "json" else f"ready: {rendered['listen']}", flush=True)

    asyncio.run(until_signalled(run_here(place, who, on_ready=ready, refresh=refresh, every=every)))


@radius.command("enroll")
def radius_enroll(
    url: Annotated[str, typer.Argument(help="The appliance's device port, https://HOST:PORT.")],
    folder: Annotated[Path, typer.Option("--dir", help="Where this RADIUS server keeps everything.")],
    fingerprint: Annotated[str, typer.Option(help="SHA-256 of the appliance's root certificate, hex.")],
    secret_file: Annotated[Path | None, typer.Option(help="File with NAME:SECRET; only the first time.")] = None,
    decision: Annotated[str, typer.Option(help="Decision port; default: port 8444 of the same host.")] = "",
) -> None:
    """Make this machine a RADIUS server of an appliance elsewhere; may be repeated. Then: radius run --dir DIR.

    Where FreeRADIUS listens here is said by this machine's own settings: radius.host, port, accounting_port,
    radsec_host, user.
    """
    from appliance.access.remote import Remote, Site, write_site

    settings = loaded().settings.radius
    host, _, _ = url.removesuffix("/").rpartition(":")
    site = Site(
        url=url,
        decision=decision or f"{host}:8444",
        fingerprint=fingerprint.replace(":", "").lower(),
        host=settings.host,
        port=settings.port or 1812,
        accounting_port=settings.accounting_port or 1813,
        radsec_host=settings.radsec_host,
        user=settings.user,
    )
    write_site(folder.absolute(), site)
    remote = Remote(folder.absolute())

    async def work() -> dict[str, object]:
        enrolled = await remote.enroll(read_text(secret_file).strip() if secret_file else "")
        renewed = not enrolled and await remote.renew()
        changed = await remote.fetch()
        return {"folder": str(remote.folder), "enrolled": enrolled, "renewed": renewed, "changed": changed}

    show(asyncio.run(work()))


@nas.command("add")
def nas_add(
    name: str,
    address: Annotated[str, typer.Argument(help="Address or network, such as 192.0.2.10 or 192.0.2.0/24.")],
    secret_file: Annotated[Path | None, typer.Option(help="File with the shared secret; default: one is made.")] = None,
    site: Annotated[str, typer.Option(help="Where it stands, for the policy's site conditions and VLANs.")] = "",
    coa_port: Annotated[int, typer.Option(min=1, max=65_535, help="Where it takes CoA and Disconnect, UDP.")] = 3799,
    profile: Annotated[str, typer.Option(help="How its live sessions are changed.")] = "generic-disconnect",
) -> None:
    """Let a NAS ask; a secret made here is shown once."""
    secret = read_text(secret_file).strip() if secret_file else ""
    show(ask("nas.add", name=name, address=address, secret=secret, site=site, coa_port=coa_port, profile=profile))


@nas.command("set")
def nas_set(
    name: str,
    coa_port: Annotated[int, typer.Option(min=0, max=65_535, help="Where it takes CoA; 0 = as it is.")] = 0,
    profile: Annotated[str, typer.Option(help="How its live sessions are changed; empty = as it is.")] = "",
) -> None:
    """Change where and how a NAS is asked to change live sessions."""
    show(ask("nas.set", name=name, coa_port=coa_port, profile=profile))


@nas.command("rotate-secret")
def nas_rotate_secret(
    name: str,
    overlap: Annotated[
        str, typer.Option(help="How long the old secret counts too: 90s, 30m, 1h, 2d; 0s = no more.")
    ] = "1h",
    secret_file: Annotated[Path | None, typer.Option(help="File with the new secret; default: one is made.")] = None,
) -> None:
    """Give a NAS a new secret; a secret made here is shown once. `nas list` says who still uses the old one.

    FreeRADIUS takes one secret at a time: behind it the overlap is for CoA and Disconnect alone, and the answer says
    when logins want the new one.
    """
    secret = read_text(secret_file).strip() if secret_file else ""
    show(ask("nas.rotate_secret", name=name, overlap_seconds=_seconds(overlap), secret=secret))


def _seconds(text: str) -> float:
    unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}.get(text[-1:])
    if unit is None or not text[:-1].isascii() or not text[:-1].isdecimal() or len(text) > 9:
        raise typer.BadParameter("a time is a number and s, m, h or d, such as 30m")
    return float(int(text[:-1]) * unit)


_NAS = (
    "name", "address", "site", "profile", "coa_port", "old_secret_until", "old_secret_for", "still_old", "created_at"
)  # fmt: skip


@nas.command("list")
def nas_list() -> None:
    """NAS that may ask."""
    show(ask("nas.list"), _NAS)


@nas.command("remove")
def nas_remove(name: str) -> None:
    """Let a NAS ask no more, and revoke its certificates."""
    show(ask("nas.remove", name=name))


@nas.command("certify")
def nas_certify(
    name: str,
    csr: Annotated[Path, typer.Option(help="The NAS's certification request, PEM.")],
    out: Annotated[Path, typer.Option(help="Where its certificate and issuing CA go, PEM.")],
) -> None:
    """Give a NAS a certificate for RadSec; revoke it by `certs revoke`."""
    issued = ask("nas.certify", name=name, csr_pem=read_text(csr))
    out.write_text(issued.pop("pem"), encoding="ascii")
    show({**issued, "file": str(out)})


@sessions.command("list")
def sessions_list(
    owner: Annotated[str, typer.Option(help="Of this owner.")] = "",
    agent: Annotated[str, typer.Option(help="Of this agent.")] = "",
    nas_name: Annotated[str, typer.Option("--nas", help="At this NAS.")] = "",
    mac: Annotated[str, typer.Option(help="Of this station, in any spelling.")] = "",
    vlan: Annotated[str, typer.Option(help="In this VLAN, by number.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
) -> None:
    """Live sessions, newest first."""
    found = ask("sessions.list", owner=owner, agent=agent, nas=nas_name, mac=mac, vlan=vlan, everything=everything)
    show(found, ("id", "state", "nas", "port", "mac", "vlan", "agent", "owner", "since", "last_update", "cause"))


@sessions.command("show")
def sessions_show(session_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """One session, and what its NAS was asked for."""
    show(ask("sessions.show", session_id=session_id))


@sessions.command("disconnect")
def sessions_disconnect(
    session_id: Annotated[str, typer.Argument(metavar="[ID]", help="One session.")] = "",
    agent: Annotated[str, typer.Option(help="Or all of this agent.")] = "",
    owner: Annotated[str, typer.Option(help="Or all of this owner.")] = "",
    mac: Annotated[str, typer.Option(help="Or all of this station.")] = "",
    reauthenticate: Annotated[bool, typer.Option("--reauthenticate", help="Ask them to log in anew instead.")] = False,
) -> None:
    """Ask the NAS to end sessions; `sessions show` says how it went."""
    found = ask(
        "sessions.disconnect", session_id=session_id, agent=agent, owner=owner, mac=mac, reauthenticate=reauthenticate
    )
    show(found, ("session", "want", "state", "nas", "port", "mac"))
