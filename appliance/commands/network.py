"""Verbs about network access: RADIUS and NAS."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from appliance.commands.invocation import ask, group, invocation, loaded, read_text, show

radius = group("FreeRADIUS: render, run and check its configuration.")
nas = group("Switches and access points that may ask.")


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
    """Render, check, start and supervise FreeRADIUS in the foreground; SIGTERM stops it."""
    from appliance.access.freeradius import supervise
    from appliance.log import set_up_logging
    from appliance.signals import until_signalled

    set_up_logging(loaded().settings.log)
    rendered = ask("radius.render", folder=str((folder or loaded().settings.home / "radius").absolute()))

    def ready() -> None:
        event = {"event": "ready", "radius": rendered["listen"], "folder": rendered["folder"]}
        print(json.dumps(event) if invocation().output == "json" else f"ready: {rendered['listen']}", flush=True)

    asyncio.run(until_signalled(supervise(Path(rendered["folder"]), on_ready=ready)))


@nas.command("add")
def nas_add(
    name: str,
    address: Annotated[str, typer.Argument(help="Address or network, such as 192.0.2.10 or 192.0.2.0/24.")],
    secret_file: Annotated[Path | None, typer.Option(help="File with the shared secret; default: one is made.")] = None,
    site: Annotated[str, typer.Option(help="Where it stands, for the policy's site conditions and VLANs.")] = "",
) -> None:
    """Let a NAS ask; a secret made here is shown once."""
    secret = read_text(secret_file).strip() if secret_file else ""
    show(ask("nas.add", name=name, address=address, secret=secret, site=site))


@nas.command("list")
def nas_list() -> None:
    """NAS that may ask."""
    show(ask("nas.list"), ("name", "address", "site", "created_at"))


@nas.command("remove")
def nas_remove(name: str) -> None:
    """Let a NAS ask no more."""
    show(ask("nas.remove", name=name))
