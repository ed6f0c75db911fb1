"""Verbs about network access: policy, RADIUS, NAS, the decision log."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from appliance.commands.invocation import ask, group, invocation, loaded, read_text, show

policy = group("Who gets which VLAN.")
radius = group("FreeRADIUS: render, run and check its configuration.")
nas = group("Switches and access points that may ask.")
access = group("What was decided at the ports.")


@policy.command("show")
def policy_show() -> None:
    """The policy in force."""
    result = ask("policy.show")
    show(result, text=result["text"])


@policy.command("validate")
def policy_validate(file: Path) -> None:
    """Read a policy file as `publish` would, and change nothing."""
    show(ask("policy.validate", text=read_text(file)))


@policy.command("publish")
def policy_publish(file: Path, comment: Annotated[str, typer.Option(help="Why, for the log.")] = "") -> None:
    """Put a policy file in force as the next revision."""
    show(ask("policy.publish", text=read_text(file), comment=comment))


@policy.command("explain")
def policy_explain(
    cert: Annotated[Path | None, typer.Option(help="A certificate, PEM.")] = None,
    serial: Annotated[str, typer.Option(help="Or its serial number, hex.")] = "",
    issuer: Annotated[str, typer.Option(help="CA role that issued it.")] = "agents",
    nas_name: Annotated[str, typer.Option("--nas", help="As asked by this NAS.")] = "",
) -> None:
    """What a credential would get now, and why; the same function decides at the port."""
    if (cert is None) == (not serial):
        raise typer.BadParameter("give either --cert FILE or --serial N")
    result = ask(
        "policy.explain",
        certificate_pem=read_text(cert) if cert else "",
        serial=serial,
        issuer=issuer,
        nas=nas_name,
    )
    show(result, text=result["text"])


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
) -> None:
    """Let a NAS ask; a secret made here is shown once."""
    show(ask("nas.add", name=name, address=address, secret=read_text(secret_file).strip() if secret_file else ""))


@nas.command("list")
def nas_list() -> None:
    """NAS that may ask."""
    show(ask("nas.list"), ("name", "address", "created_at"))


@nas.command("remove")
def nas_remove(name: str) -> None:
    """Let a NAS ask no more."""
    show(ask("nas.remove", name=name))


@access.command("log")
def access_log(limit: Annotated[int, typer.Option(min=1, max=10_000, help="Newest rows.")] = 50) -> None:
    """The decision log, newest last."""
    show(ask("access.log", limit=limit), ("time", "verdict", "vlan", "agent", "owner", "department", "nas", "reason"))
