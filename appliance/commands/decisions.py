"""Verbs about decisions: the access policy, and the log of what was decided."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.commands.invocation import ask, group, invocation, loaded, read_text, show
from appliance.console.tables import printable

FOLLOW_SECONDS = 1.0

policy = group("Who gets which VLAN.")
access = group("What was decided at the ports.")

Revision = Annotated[int, typer.Option("--revision", min=0, help="A revision; default: the one in force.")]


@policy.command("list")
def policy_list(limit: Annotated[int, typer.Option(min=1, max=1000, help="Newest revisions.")] = 100) -> None:
    """The revisions, newest first; the first of them is in force."""
    show(ask("policy.list", limit=limit), ("revision", "published_at", "comment", "sha256"))


@policy.command("show")
def policy_show(revision: Revision = 0) -> None:
    """The policy in force, or an earlier revision."""
    result = ask("policy.show", revision=revision)
    show(result, text=result["text"])


@policy.command("diff")
def policy_diff(
    first: Annotated[int, typer.Argument(metavar="A", min=1)],
    second: Annotated[int, typer.Argument(metavar="B", help="Default: the revision in force.")] = 0,
) -> None:
    """What changed from revision A to revision B."""
    result = ask("policy.diff", first=first, second=second)
    show(result, text=result["diff"] or "no difference")


@policy.command("validate")
def policy_validate(file: Path) -> None:
    """Read a policy file as `publish` would, and change nothing."""
    result = ask("policy.validate", text=read_text(file))
    _warn(result)
    show(result)


@policy.command("publish")
def policy_publish(file: Path, comment: Annotated[str, typer.Option(help="Why, for the log.")] = "") -> None:
    """Put a policy file in force as the next revision."""
    result = ask("policy.publish", text=read_text(file), comment=comment)
    _warn(result)
    show(result)


@policy.command("rollback")
def policy_rollback(
    revision: Annotated[int, typer.Argument(metavar="REV", min=1)],
    comment: Annotated[str, typer.Option(help="Why, for the log.")] = "",
) -> None:
    """Put the text of an earlier revision in force again, as the next revision."""
    show(ask("policy.rollback", revision=revision, comment=comment))


@policy.command("impact")
def policy_impact(
    file: Path,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How many days of logins are replayed.")] = 7,
) -> None:
    """What a draft would change: the logins of the last days and the sessions that are open now, judged by both."""
    result = ask("policy.impact", text=read_text(file), days=days)
    if invocation().output == "json":
        show(result)
        return
    print(
        f"{result['logins_changed']} of {result['logins']} logins of {days} days would change, of "
        f"{result['agents_changed']} agents; compared with revision {result['compared_with_revision']}"
    )
    if result["logins_without_policy"]:
        print(f"{result['logins_without_policy']} rows ended before the policy, or keep too little to be replayed")
    if not result["is_complete"]:
        print("there are more changes than are listed here")
    if result["changes"]:
        show(result["transitions"], ("logins", "from", "to"))
        show(result["changes"], ("who", "from", "to", "logins", "nas", "last", "why"))
    print(f"{result['sessions_changed']} of {result['sessions']} sessions that are open now would change")
    if result["sessions_not_judged"]:
        print(f"{result['sessions_not_judged']} sessions were not decided here, or too little is known of them now")
    if result["session_changes"]:
        columns = ("nas", "port", "mac", "agent", "owner", "vlan_now", "vlan_then", "asks", "why")
        show(result["session_changes"], columns)
        if len(result["session_changes"]) < result["sessions_changed"]:
            print("more sessions would change than are listed here")


@policy.command("explain")
def policy_explain(
    cert: Annotated[Path | None, typer.Option(help="A certificate, PEM.")] = None,
    serial: Annotated[str, typer.Option(help="Or its serial number, hex.")] = "",
    log: Annotated[int, typer.Option("--log", min=0, help="Or a row of the decision log, by its id.")] = 0,
    issuer: Annotated[str, typer.Option(help="CA role that issued it.")] = "agents",
    nas_name: Annotated[str, typer.Option("--nas", help="As asked by this NAS.")] = "",
    port: Annotated[str, typer.Option("--port", help="As asked for this port.")] = "",
    called: Annotated[str, typer.Option("--called", help="With this Called-Station-Id: address:SSID.")] = "",
) -> None:
    """What a credential would get now, and why, or why a row of the log is as it is; the same function decides."""
    if [cert is not None, bool(serial), bool(log)].count(True) != 1:
        raise typer.BadParameter("give one of --cert FILE, --serial N and --log ID")
    result = ask(
        "policy.explain",
        certificate_pem=read_text(cert) if cert else "",
        serial=serial,
        issuer=issuer,
        nas=nas_name,
        port=port,
        called=called,
        log=log,
    )
    show(result, text=result["text"])


def _warn(result: dict[str, Any]) -> None:
    if invocation().output != "json":
        for one in result.pop("warnings"):
            print(f"warning: {one}", file=sys.stderr)


_LOG = ("id", "time", "verdict", "vlan", "agent", "owner", "department", "nas", "port", "mac", "reason", "times")
Since = Annotated[str, typer.Option("--since", help="Not older than: a date, a moment, or a span as in 7d, 12h, 15m.")]


@access.command("log")
def access_log(
    agent: Annotated[str, typer.Option(help="Only this agent's: identifier or UUID.")] = "",
    owner: Annotated[str, typer.Option(help="Only in this owner's name: ref or identifier.")] = "",
    nas_name: Annotated[
        str, typer.Option("--nas", help="Only asked by this NAS: name, or address of a stranger.")
    ] = "",
    mac: Annotated[str, typer.Option(help="Only from this MAC address, in any spelling.")] = "",
    verdict: Annotated[str, typer.Option(help="Only accept, guest or reject.")] = "",
    reason: Annotated[str, typer.Option(help="Only with this reason code.")] = "",
    since: Since = "",
    until: Annotated[str, typer.Option(help="Older than: as --since.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Newest rows.")] = 50,
    before: Annotated[int, typer.Option(min=0, help="Only rows with a smaller id: the page before.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is decided next; Ctrl-C ends it.")] = False,
) -> None:
    """The decision log, newest last."""
    given = {
        "agent": agent,
        "owner": owner,
        "nas": nas_name,
        "mac": mac,
        "verdict": verdict,
        "reason": reason,
        "since": since,
        "until": until,
    }
    result = ask("access.search", **given, limit=limit, before=before)
    if not follow:
        show(result["rows"], _LOG)
        if result["next"] is not None:
            print(f"older rows: --before {result['next']}", file=sys.stderr)
        return
    with contextlib.suppress(KeyboardInterrupt):
        _follow(given, result["rows"])


def _follow(given: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Print rows as they come: JSON lines, or one line each. Raises ApplianceUnreachable once nobody decides here."""
    from appliance.console.client import ApplianceUnreachable
    from appliance.home import is_locked

    home = loaded().settings.home
    last = 0
    while True:
        for row in rows:
            line = json.dumps(row, ensure_ascii=False)
            if invocation().output != "json":
                line = "  ".join(printable(row[name]) for name in _LOG if row[name] not in (None, ""))
            print(line, flush=True)
            last = row["id"]
        if not rows:
            time.sleep(FOLLOW_SECONDS)
        if not is_locked(home):
            # to ask now would open the home itself, every second, and stand in the way of its next start
            raise ApplianceUnreachable(f"no appliance runs on {home}: nothing more is decided")
        rows = ask("access.search", **given, after=last, limit=10_000)["rows"]


@access.command("show")
def access_show(key: Annotated[int, typer.Argument(metavar="ID", min=1)]) -> None:
    """One row with its whole reason chain, and what the policy in force would say now."""
    result = ask("access.show", key=key)
    show(result, text=result["text"])


@access.command("export")
def access_export(
    file: Annotated[Path, typer.Argument(help="Where the lines go; - for standard output.")],
    format_: Annotated[str, typer.Option("--format", help="jsonl, syslog (RFC 5424) or cef.")] = "jsonl",
    since: Since = "",
    after: Annotated[int, typer.Option(min=0, help="Only rows with a greater id: go on after an export.")] = 0,
) -> None:
    """Write the decision log as lines for other programs, oldest first."""
    lines = 0
    with contextlib.nullcontext(sys.stdout) if str(file) == "-" else file.open("w", encoding="utf-8") as stream:
        position: int | None = after
        while position is not None:
            page = ask("access.export", format=format_, after=position, since=since)
            stream.writelines(f"{line}\n" for line in page["lines"])
            lines += len(page["lines"])
            position = page["next"]
    if str(file) != "-":
        show({"rows": lines, "file": str(file)})


@access.command("forwarding")
def access_forwarding() -> None:
    """The syslog receivers of `access.forward_to`: whether each is there, what it got, and what it never will."""
    show(ask("access.forwarding"), ("to", "state", "since", "sent", "behind", "dropped", "why"))
