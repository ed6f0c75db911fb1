"""Verbs about the CAs: the appliance's own certificates, the root, rollover."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.commands.invocation import ask, group, invocation, read_text, show

ca = group("The CAs, and the certificates of the appliance's own servers.")
rollover = group("Change a CA for a successor, step by step.")
root = group("The root's key: keep it elsewhere, and have it sign there.")
ca.add_typer(rollover, name="rollover")
ca.add_typer(root, name="root")

RoleOption = Annotated[str, typer.Option("--role", help="devices, agents, infrastructure, or root.")]
_COLUMNS = ("ca", "label", "state", "since", "waiting", "next")


@ca.command("renew-servers")
def renew_servers(
    names: Annotated[list[str] | None, typer.Argument(help="registrar, radius, https; none = all three.")] = None,
) -> None:
    """New certificates for the appliance's own servers, taken into use at once; two thirds of life do it too."""
    show(ask("ca.renew_servers", names=names or []), ("server", "serial", "not_after"))


@rollover.command("start")
def rollover_start(role: RoleOption) -> None:
    """Make the new key, and its certificates where the root's key is in the home."""
    show(ask("ca.rollover_start", role=role))


@rollover.command("status")
def rollover_status() -> None:
    """Every rollover, where it stands, and what comes next."""
    show(ask("ca.rollover_status"), _COLUMNS)


@rollover.command("advance")
def rollover_advance(
    role: RoleOption,
    force: Annotated[bool, typer.Option("--force", help="Retire the old CA though certificates depend on it.")] = False,
) -> None:
    """The next state: prepared, published, signing-with-new, old-retired."""
    show(ask("ca.rollover_advance", role=role, force=force))


@rollover.command("back")
def rollover_back(role: RoleOption) -> None:
    """The state before; possible until the new one signs."""
    show(ask("ca.rollover_back", role=role))


@root.command("export")
def root_export(file: Annotated[Path, typer.Argument(help="Where the encrypted key goes; it must not exist.")]) -> None:
    """Move the root's key out of the home; the copy is verified before the original is removed."""
    show(ask("ca.root_export", file=str(file.absolute())))


@root.command("sign-request")
def root_sign_request(out: Annotated[Path, typer.Option(help="Where the request goes; it must not exist.")]) -> None:
    """Write what the root should sign: for rollovers that wait, else new certificates for the issuing keys of now."""
    from appliance.keys import write_private

    write_private(out, ask("ca.root_sign_request")["request"].encode())
    show({"request": str(out), "next": "where the root's key is: appliance ca root sign"})


@root.command("sign")
def root_sign(
    key: Annotated[Path, typer.Option(help="The root's key, as `export` wrote it.")],
    request: Annotated[Path, typer.Option(help="What `sign-request` wrote.")],
    out: Annotated[Path, typer.Option(help="Where the answer goes; it must not exist.")],
    new_key: Annotated[
        Path | None, typer.Option(help="For a new root: where its key goes, under the same passphrase.")
    ] = None,
) -> None:
    """Sign a request with the root's key: needs no home and no network, only --passphrase-file."""
    from appliance.clock import SystemClock
    from appliance.keys import generate, read_key, write_key, write_private
    from appliance.root_signing import read_request, sign

    given = invocation().passphrase_file
    if given is None:
        raise typer.BadParameter("--passphrase-file is needed to open the root's key")
    passphrase = read_text(given).strip().encode()
    asked, opened = read_request(read_text(request)), read_key(key, passphrase)
    made = generate() if new_key is not None else None
    answer = sign(asked, opened, SystemClock().now(), made)
    if new_key is not None and made is not None:
        write_key(new_key, made, passphrase)  # before the answer: what it names must not be lost
    write_private(out, answer.encode())
    show({"answer": str(out), "signed": ", ".join(asked.csrs), "next": "in the home: appliance ca root import"})


@root.command("import")
def root_import(file: Annotated[Path, typer.Argument(help="What `sign` wrote.")]) -> None:
    """Take in what the root signed."""
    show(ask("ca.root_import", answer=read_text(file)), _COLUMNS)
