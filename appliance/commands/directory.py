"""Verbs about where owners come from: a watched file, an LDAP directory, SCIM clients."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.commands.invocation import ask, group, show

directory = group("Where owners come from: a watched file, an LDAP directory, an identity provider (SCIM).")
token = group("Tokens of SCIM clients.")
directory.add_typer(token, name="token")

_MARKS = (("added", "+"), ("changed", "~"), ("suspended", "-"), ("vanished", "?"), ("returned", "="))


@directory.command("sync")
def directory_sync(
    confirm: Annotated[bool, typer.Option("--confirm", help="Go on though more than a tenth would change.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, change nothing.")] = False,
) -> None:
    """Read the source of owners now."""
    result = ask("directory.sync", confirm=confirm, dry_run=dry_run)
    show(result, text=_text(result))


def _text(result: dict[str, Any]) -> str:
    rows, lines = result["rows"], []
    for kind, mark in _MARKS:
        for one in rows.get(kind, ()):
            what = ", ".join(f"{key} {value}" for key, value in one.items() if key != "ref")
            lines.append(f"{mark} {one['ref']}: {what}")
    lines += [f"! {one['ref']}: {one['kind']}" for one in rows.get("conflicts", ())]
    lines += [f"! {one}" for one in rows.get("defects", ())]
    done = "done" if result["applied"] else "nothing was changed (dry run)"
    if result.get("needs_confirmation") and not result["applied"]:
        done += "; this much needs --confirm"
    return "\n".join([*lines, f"{result['unchanged']} unchanged; {done}"])


@directory.command("status")
def directory_status() -> None:
    """Every source of owners, how its last reading went, and how old the last whole one is."""
    show(
        ask("directory.status"),
        ("source", "scheduled", "owners", "present", "disabled", "absent", "outcome", "confirmed_at", "stale"),
    )


@directory.command("lookup")
def directory_lookup(ref: str) -> None:
    """What the LDAP directory says of one person now; nothing is changed."""
    show(ask("directory.lookup", ref=ref))


@directory.command("adopt")
def directory_adopt(ref: str, source: Annotated[str, typer.Option(help="local, ldap or scim.")]) -> None:
    """Hand an owner over to a source, which finds it by its ref this once: your word that it is the same person."""
    show(ask("directory.adopt", ref=ref, source=source))


@token.command("new")
def token_new(
    name: Annotated[str, typer.Option(help="Name of the client.")],
    file: Annotated[Path | None, typer.Option(help="Write the token here, mode 0600, instead of showing it.")] = None,
) -> None:
    """Make a token for a client that pushes owners; it is shown this once."""
    opened = None if file is None else os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        made = ask("directory.new_token", name=name)
        if opened is not None:
            os.write(opened, made["token"].encode() + b"\n")
    except BaseException:  # whatever it was, Ctrl-C too: an empty file is not taken for a token
        if opened is not None and file is not None:
            file.unlink()
        raise
    finally:
        if opened is not None:
            os.close(opened)
    show(made if file is None else {"name": name, "file": str(file)})


@token.command("list")
def token_list() -> None:
    """Clients that have a token."""
    show(ask("directory.tokens"), ("name", "created_at"))


@token.command("revoke")
def token_revoke(name: str) -> None:
    """Withdraw a client's token at once."""
    show(ask("directory.revoke_token", name=name))
