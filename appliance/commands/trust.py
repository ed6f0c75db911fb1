"""Verbs about other campuses: whose credentials are believed here beside our own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.commands.invocation import ask, group, read_text, show

trust = group("Campuses whose credentials are believed here beside our own.")


@trust.command("import")
def trust_import(
    file: Annotated[Path, typer.Argument(help="Their trust bundle: appliance owners bundle FILE, at their place.")],
    confirm: Annotated[bool, typer.Option("--confirm", help="Though anchors or keys differ.")] = False,
) -> None:
    """Take in the trust bundle of another campus; compare the fingerprints with them before."""
    show(ask("trust.import", bundle=read_text(file), confirm=confirm))


@trust.command("list")
def trust_list() -> None:
    """Campuses that are trusted."""
    show(ask("trust.list"), ("origin", "owners", "made_at", "imported_at"))


@trust.command("show")
def trust_show(origin: Annotated[str, typer.Argument(help="Such as spiffe://other.example.")]) -> None:
    """The trust bundle of one of them."""
    result = ask("trust.show", origin=origin)
    show(result, text=result["bundle"].rstrip())


@trust.command("remove")
def trust_remove(origin: str) -> None:
    """Trust a campus no more."""
    show(ask("trust.remove", origin=origin))
