"""Verbs about devices on their way in: manufacturers, pledges, proxies, one-time enrolment secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.commands.invocation import ask, group, read_text, show
from appliance.console.tables import printable
from appliance.console.timeline import timeline_text

manufacturers = group("Whose IDevIDs are known.")
pledges = group("Proxies on their way in.")
proxies = group("Identity proxies that are in.")
est_secrets = group("Plain EST: one-time enrolment secrets, requests that wait for approval, registration authorities.")
est_pending = group("Requests that wait for approval.")
est_secrets.add_typer(est_pending, name="pending")


_OPTIONS = typer.Argument(
    metavar="OPTION=VALUE...", help="Options of the manufacturer; the manual has the table (manufacturers)."
)
_MASA_ANCHORS = typer.Option(help="Anchors of the MASA's TLS certificate, PEM.")


@manufacturers.command("add")
def manufacturers_add(
    file: Annotated[Path, typer.Argument(help="CA certificates of its IDevIDs, PEM.")],
    options: Annotated[list[str] | None, _OPTIONS] = None,
    masa: Annotated[str, typer.Option(help="MASA URL, or the host:port that its IDevIDs may name.")] = "",
    name: Annotated[str, typer.Option(help="Name; default: from the certificate.")] = "",
    masa_anchors: Annotated[Path | None, _MASA_ANCHORS] = None,
    serials: Annotated[Path | None, typer.Option(help="File with the serial numbers to admit, one per line.")] = None,
    ignore_expiry: Annotated[bool, typer.Option(help="Accept expired IDevIDs of this manufacturer.")] = False,
) -> None:
    """Trust a manufacturer's IDevIDs."""
    show(
        ask(
            "manufacturers.add",
            anchors_pem=read_text(file),
            masa_url=masa,
            name=name,
            masa_tls_anchors_pem=read_text(masa_anchors) if masa_anchors else "",
            ignore_expiry=ignore_expiry,
            serials=[line.strip() for line in read_text(serials).splitlines() if line.strip()] if serials else [],
            options=_assignments(options),
        )
    )


@manufacturers.command("set")
def manufacturers_set(
    name: Annotated[str, typer.Argument(help="The manufacturer.")],
    options: Annotated[list[str] | None, _OPTIONS] = None,
    masa: Annotated[str, typer.Option(help="MASA URL; none = only what its IDevIDs name.")] = "",
    new_name: Annotated[str, typer.Option(help="Another name.")] = "",
    anchors: Annotated[Path | None, typer.Option(help="CA certificates of its IDevIDs, PEM, instead of now's.")] = None,
    masa_anchors: Annotated[Path | None, _MASA_ANCHORS] = None,
) -> None:
    """Change what is given, keep the rest."""
    show(
        ask(
            "manufacturers.set",
            name=name,
            new_name=new_name,
            anchors_pem=read_text(anchors) if anchors else "",
            masa_url=masa,
            masa_tls_anchors_pem=read_text(masa_anchors) if masa_anchors else "",
            options=_assignments(options),
        )
    )


def _assignments(options: list[str] | None) -> dict[str, str]:
    found = {}
    for text in options or ():
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"OPTION=VALUE is wanted, not {text!r}")
        path = name.replace("_", "-") in _PATHS and value
        found[name] = str(Path(value).absolute()) if path else value
    return found


_PATHS = ("masa-client-certificate", "masa-client-key", "masa-basic-file")


@manufacturers.command("show")
def manufacturers_show(name: str) -> None:
    """One manufacturer with everything that is set."""
    show(ask("manufacturers.show", name=name))


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
    """Pledges of known manufacturers, and where each stands."""
    show(ask("pledges.list"), ("serial", "manufacturer", "state", "updated_at", "what_to_do"))


@pledges.command("show")
def pledges_show(serial: Annotated[str, typer.Argument(help="Serial number, or fingerprint of the IDevID.")]) -> None:
    """One pledge: where it stands, its timeline, its artefacts decoded, and what to do."""
    result = ask("pledges.show", serial=serial)
    show(result, text=timeline_text(result))


@pledges.command("knocking")
def pledges_knocking() -> None:
    """Who knocked and was not let in, and what to do about each."""
    columns = ("fingerprint", "serial", "maker", "reason", "first_seen", "last_seen", "times", "what_to_do")
    show(ask("pledges.knocking"), columns)


@pledges.command("forget")
def pledges_forget(fingerprint: Annotated[str, typer.Argument(help="SHA-256 of the certificate, hex.")]) -> None:
    """Remove one from the list of who knocked, until it knocks again."""
    show(ask("pledges.forget", fingerprint=fingerprint))


@pledges.command("admit")
def pledges_admit(serial: str) -> None:
    """Let a waiting pledge in, or one that was refused by hand."""
    show(ask("pledges.admit", serial=serial))


@pledges.command("refuse")
def pledges_refuse(serial: str, reason: Annotated[str, typer.Option(help="Why, for the log.")] = "") -> None:
    """Keep a pledge out."""
    show(ask("pledges.refuse", serial=serial, reason=reason))


@pledges.command("override")
def pledges_override(serial: str, reason: Annotated[str, typer.Option(help="Why, for the log.")]) -> None:
    """Let a pledge in with the findings that its history was refused for."""
    show(ask("pledges.override", serial=serial, reason=reason))


@pledges.command("withdraw")
def pledges_withdraw(serial: str, reason: Annotated[str, typer.Option(help="Why, for the log.")] = "") -> None:
    """Take an override back: the pledge is refused, its proxy and certificates end."""
    show(ask("pledges.withdraw", serial=serial, reason=reason))


@pledges.command("import")
def pledges_import(
    file: Annotated[
        Path, typer.Argument(help="CSV: manufacturer,serial and, if wanted, label,idevid-issuer,delivered.")
    ],
    replace: Annotated[
        bool, typer.Option("--replace", help="Forget devices of its makers that are not in it.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, change nothing.")] = False,
) -> None:
    """Take in a list of expected devices; they are admitted when they come."""
    result = ask("pledges.import", csv=read_text(file), replace=replace, dry_run=dry_run)
    show(result, text=_diff_text(result))


@pledges.command("expected")
def pledges_expected() -> None:
    """Expected devices."""
    show(ask("pledges.expected"), ("manufacturer", "serial", "label", "idevid-issuer", "delivered"))


@pledges.command("prefetch")
def pledges_prefetch(
    manufacturer: Annotated[str, typer.Option(help="Their manufacturer.")],
    serials: Annotated[list[str] | None, typer.Argument(help="Serial numbers; none = every expected one.")] = None,
) -> None:
    """Fetch vouchers without a nonce for devices that will come while the site is offline."""
    wanted = serials or ask("pledges.lacking", manufacturer=manufacturer)
    rows = []
    for at in range(0, len(wanted), _PREFETCHED_AT_ONCE):
        rows += ask("pledges.prefetch", manufacturer=manufacturer, serials=wanted[at : at + _PREFETCHED_AT_ONCE])
    show(rows, ("serial", "outcome", "reason", "expires_at", "what_to_do"))


_PREFETCHED_AT_ONCE = 20


@pledges.command("vouchers")
def pledges_vouchers() -> None:
    """Vouchers that were fetched ahead."""
    show(ask("pledges.vouchers"), ("serial", "state", "fetched_at", "expires_at", "masa"))


def _diff_text(result: dict[str, Any]) -> str:
    lines = []
    for kind, mark in (("added", "+"), ("changed", "~"), ("removed", "-"), ("missing", "?")):
        for row in result.get(kind, ()):
            what = ", ".join(f"{key} {value}" for key, value in row.items() if value and isinstance(value, str))
            lines.append(printable(f"{mark} {what}"))
    counts = ", ".join(f"{count} {kind}" for kind, count in result["counts"].items())
    done = "done" if result["applied"] else "nothing was changed (dry run)"
    return "\n".join([*lines, f"{counts}; {done}"])


@proxies.command("list")
def proxies_list() -> None:
    """Identity proxies."""
    show(ask("proxies.list"), ("identifier", "method", "state", "serial", "created_at"))


@proxies.command("suspend")
def proxies_suspend(
    proxy: Annotated[str, typer.Argument(help="Identifier of the proxy.")],
    reason: Annotated[str, typer.Option(help="Why, for the log.")] = "",
) -> None:
    """Take no requests and renewals from a proxy until it is resumed; credentials stay."""
    show(ask("proxies.suspend", proxy=proxy, reason=reason))


@proxies.command("resume")
def proxies_resume(proxy: Annotated[str, typer.Argument(help="Identifier of the proxy.")]) -> None:
    """End a suspension."""
    show(ask("proxies.resume", proxy=proxy))


@proxies.command("revoke")
def proxies_revoke(proxy: Annotated[str, typer.Argument(help="Identifier of the proxy.")]) -> None:
    """Revoke a proxy, its LDevID and every agent that it alone vouched for."""
    show(ask("proxies.revoke", proxy=proxy))


@est_secrets.command("secret")
def est_secret(
    name: Annotated[str, typer.Option("--for", help="Name of the proxy that will use it.")],
    verb: Annotated[str, typer.Argument(metavar="[new]", show_default=False, help="The one thing to do.")] = "new",
    hours: Annotated[float, typer.Option(help="Life in hours.")] = 24.0,
    label: Annotated[str, typer.Option(help="EST label that it is good under; empty = the path without one.")] = "",
) -> None:
    """Make a one-time enrolment secret; it is shown once."""
    if verb != "new":
        raise typer.BadParameter("a secret can only be made: new")
    show(ask("est.secret", name=name, hours=hours, label=label))


@est_secrets.command("authority")
def est_authority(
    request: Annotated[Path, typer.Argument(help="Its PKCS#10 request, PEM; names in it are not looked at.")],
    name: Annotated[str, typer.Option(help="Name of the registration authority.")],
    days: Annotated[float, typer.Option(help="Life of the certificate, days.")] = 90.0,
) -> None:
    """Certify a registration authority: it may ask for others under EST labels with authorities = true."""
    show(ask("est.authority", name=name, request=read_text(request), days=days))


_REQUEST = Annotated[str, typer.Argument(metavar="ID", help="Id of the request, from the list.")]


@est_pending.command("list")
def est_pending_list() -> None:
    """Requests that wait, newest first, and what became of earlier ones."""
    show(ask("est.pending"), ("id", "state", "label", "requester", "subject", "key_sha256", "created_at"))


@est_pending.command("approve")
def est_pending_approve(request: _REQUEST) -> None:
    """Let a request have its one certificate, the next time it is sent."""
    show(ask("est.approve", id=request))


@est_pending.command("deny")
def est_pending_deny(request: _REQUEST, reason: Annotated[str, typer.Option(help="What the client is told.")]) -> None:
    """Refuse a request; it is told the reason until its time is over."""
    show(ask("est.deny", id=request, reason=reason))
