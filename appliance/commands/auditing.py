"""Verbs about the audit log: list, verify, export, checkpoints, proofs; an auditor needs no appliance for some."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.commands.invocation import FileUnreadable, ask, group, read_text, show

audit = group("The hash-chained audit log and its signed checkpoints.")
_Key = Annotated[Path | None, typer.Option("--key", help="The key of the checkpoints, a JWK: appliance audit key.")]


@audit.command("list")
def audit_list(
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Newest entries.")] = 50,
    event: Annotated[str, typer.Option(help="Only this event.")] = "",
) -> None:
    """Audit entries, newest last."""
    show(ask("audit.list", limit=limit, event=event), ("seq", "time", "event", "object", "outcome", "reason"))


@audit.command("verify")
def audit_verify(
    log: Annotated[Path | None, typer.Option(help="An exported log, instead of the appliance's own.")] = None,
    checkpoints: Annotated[Path | None, typer.Option(help="With --log: checkpoints, JSON lines.")] = None,
    key: _Key = None,
) -> None:
    """Check the chain from its first entry to its head, and hold it against every signed checkpoint."""
    if log is None:
        if checkpoints is not None or key is not None:
            raise typer.BadParameter("--checkpoints and --key belong to --log FILE")
        result = ask("audit.verify")
    else:
        if (checkpoints is None) != (key is None):
            raise typer.BadParameter("give --checkpoints and --key together")
        result = _verify_export(log, checkpoints, key)
    show(result)
    if not result["ok"]:
        raise typer.Exit(1)


@audit.command("export")
def audit_export(file: Annotated[Path, typer.Argument(help="Where the JSON lines go; - for standard output.")]) -> None:
    """Write every audit entry as JSON lines."""
    lines = ask("audit.export")
    text = "".join(line + "\n" for line in lines)
    if str(file) == "-":
        sys.stdout.write(text)
    else:
        file.write_text(text, encoding="utf-8")
        show({"entries": len(lines), "file": str(file)})


@audit.command("key")
def audit_key() -> None:
    """The public key of the checkpoints as a JWK; an auditor keeps it."""
    result = ask("audit.key")
    show(result, text=json.dumps(result, indent=2))


@audit.command("checkpoint")
def audit_checkpoint() -> None:
    """Sign a checkpoint over the log as it is now, and print it."""
    result = ask("audit.checkpoint")
    show(result, text=json.dumps(result))


@audit.command("checkpoints")
def audit_checkpoints(
    after: Annotated[int, typer.Option(min=0, help="Only those of longer logs than this.")] = 0,
) -> None:
    """Signed checkpoints, oldest first; at most a thousand."""
    show(ask("audit.checkpoints", after=after), ("size", "time"))


@audit.command("prove")
def audit_prove(
    seq: Annotated[int, typer.Option(min=0, help="Prove that this entry is in the log.")] = 0,
    older: Annotated[Path | None, typer.Option(help="Or that the log still begins with this one.")] = None,
) -> None:
    """Write a proof as JSON; appliance audit check-proof reads it anywhere."""
    if (older is None) == (seq == 0):
        raise typer.BadParameter("give either --seq N or --older FILE")
    result = ask("audit.prove", older=_tokens(older)[-1]) if older is not None else ask("audit.prove", seq=seq)
    show(result, text=json.dumps(result, indent=2))


@audit.command("check-proof")
def audit_check_proof(
    file: Annotated[Path, typer.Argument(help="What appliance audit prove wrote.")],
    key: Annotated[Path, typer.Option(help="The key of the checkpoints, a JWK.")],
) -> None:
    """Check a proof; needs nothing but the file and the key."""
    from appliance import checkpoint

    document, public = _json(file), read_key(key)
    if isinstance(document, dict) and "older" in document:
        first, second = checkpoint.check_consistency(document, public)
        show({"ok": True, "log": second.origin, "entries": second.size, "begins_with": first.size})
    else:
        signed, body = checkpoint.check_inclusion(document, public)
        show({"ok": True, "log": signed.origin, "entries": signed.size, "entry": json.loads(body)})


@audit.command("accept-rollback")
def audit_accept_rollback(comment: Annotated[str, typer.Option(help="Why; it goes into the log.")]) -> None:
    """Go on with a store that lacks signed entries, after a restored backup; revocations in between are lost."""
    show(ask("audit.accept_rollback", comment=comment))


def _verify_export(log: Path, checkpoints: Path | None, key: Path | None) -> dict[str, Any]:
    from appliance import audit as entries
    from appliance import checkpoint
    from appliance.errors import AuditBroken

    signed = []
    if checkpoints is not None and key is not None:
        public = read_key(key)
        signed = [checkpoint.unseal(token, public) for token in _tokens(checkpoints)]
    try:
        head = checkpoint.verify(entries.read_export(read_text(log).splitlines()), signed)
    except AuditBroken as broken:
        return {"ok": False, "position": broken.fields.get("position"), "detail": broken.detail}
    return {"ok": True, "entries": head.seq, "head": head.hash.hex(), "checkpoints": len(signed)}


def _tokens(file: Path) -> list[str]:
    from appliance.checkpoint_keeper import read_tokens

    found = read_tokens(read_text(file), file)
    if not found:
        raise FileUnreadable(f"{file} has no checkpoint")
    return found


def read_key(file: Path) -> Any:
    """The public key in a file, a JWK; raises FileUnreadable, and what jws.read_ec_jwk raises."""
    from appliance.binding import jws

    return jws.read_ec_jwk(_json(file))


def _json(file: Path) -> Any:
    from est.errors import BodyMalformed
    from est.transfer import read_json

    try:
        return read_json(read_text(file).encode(), max_bytes=1_048_576)
    except BodyMalformed as cause:
        raise FileUnreadable(f"{file}: {cause.detail}") from cause
