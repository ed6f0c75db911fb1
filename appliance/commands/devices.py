"""Verbs about devices on their way in: manufacturers, pledges, proxies, one-time enrolment secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.commands.invocation import ask, group, read_text, show

manufacturers = group("Whose IDevIDs are known.")
pledges = group("Proxies on their way in.")
proxies = group("Identity proxies that are in.")
est_secrets = group("Plain EST: one-time enrolment secrets.")


@manufacturers.command("add")
def manufacturers_add(
    file: Annotated[Path, typer.Argument(help="CA certificates of its IDevIDs, PEM.")],
    masa: Annotated[str, typer.Option(help="MASA URL, or the host:port that its IDevIDs may name.")] = "",
    name: Annotated[str, typer.Option(help="Name; default: from the certificate.")] = "",
    masa_anchors: Annotated[
        Path | None, typer.Option(help="Anchors of the MASA's TLS certificate; default: the CA file.")
    ] = None,
    serials: Annotated[Path | None, typer.Option(help="File with the serial numbers to admit, one per line.")] = None,
    ignore_expiry: Annotated[bool, typer.Option(help="Accept expired IDevIDs of this manufacturer.")] = False,
) -> None:
    """Trust a manufacturer's IDevIDs."""
    anchors = read_text(masa_anchors) if masa_anchors else ""
    show(
        ask(
            "manufacturers.add",
            anchors_pem=read_text(file),
            masa_url=masa,
            name=name,
            masa_tls_anchors_pem=anchors,
            ignore_expiry=ignore_expiry,
            serials=[line.strip() for line in read_text(serials).splitlines() if line.strip()] if serials else [],
        )
    )


@manufacturers.command("list")
def manufacturers_list() -> None:
    """Known manufacturers."""
    show(ask("manufacturers.list"), ("name", "subject", "masa_url", "not_after"))


@manufacturers.command("remove")
def manufacturers_remove(name: str) -> None:
    """Trust a manufacturer no more."""
    show(ask("manufacturers.remove", name=name))


@pledges.command("list")
def pledges_list() -> None:
    """Every pledge that knocked."""
    show(ask("pledges.list"), ("serial", "manufacturer", "state", "proxy", "updated_at"))


@pledges.command("show")
def pledgesshow(serial: str) -> None:
    """One pledge with its timeline."""
    show(ask("pledges.show", serial=serial))


@pledges.command("admit")
def pledges_admit(serial: str) -> None:
    """Let a waiting pledge in."""
    show(ask("pledges.admit", serial=serial))


@pledges.command("refuse")
def pledges_refuse(serial: str, reason: Annotated[str, typer.Option(help="Why, for the log.")] = "") -> None:
    """Keep a pledge out."""
    show(ask("pledges.refuse", serial=serial, reason=reason))


@proxies.command("list")
def proxies_list() -> None:
    """Identity proxies."""
    show(ask("proxies.list"), ("identifier", "method", "state", "serial", "created_at"))


@proxies.command("revoke")
def proxies_revoke(proxy: Annotated[str, typer.Argument(help="Identifier of the proxy.")]) -> None:
    """Revoke a proxy, its LDevID and every agent that it alone vouched for."""
    show(ask("proxies.revoke", proxy=proxy))


@est_secrets.command("secret")
def est_secret(
    name: Annotated[str, typer.Option("--for", help="Name of the proxy that will use it.")],
    hours: Annotated[float, typer.Option(help="Life in hours.")] = 24.0,
) -> None:
    """Make a one-time enrolment secret; it is shown once."""
    show(ask("est.secret", name=name, hours=hours))
