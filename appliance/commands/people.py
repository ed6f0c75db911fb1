"""Verbs about owners and agents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.commands.invocation import ask, group, read_text, show

owners = group("Owners, their departments and keys.")
agents = group("AI agents.")


@owners.command("import")
def owners_import(
    file: Annotated[Path, typer.Argument(help="CSV with the columns ref,name,kind,department.")],
    confirm: Annotated[bool, typer.Option("--confirm", help="Go on though more than a tenth would change.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, change nothing.")] = False,
) -> None:
    """Take in owners and departments."""
    result = ask("owners.import", csv=read_text(file), confirm=confirm, dry_run=dry_run)
    show(result, text=_diff_text(result))


def _diff_text(result: dict[str, Any]) -> str:
    lines = []
    for kind, mark in (("added", "+"), ("changed", "~"), ("vanished", "?")):
        for row in result.get(kind, ()):
            what = ", ".join(f"{key} {value}" for key, value in row.items() if key != "ref")
            lines.append(f"{mark} {row['ref']}: {what}")
    done = "nothing was changed (dry run)" if not result.get("applied") else "done"
    return "\n".join([*lines, f"{len(result.get('unchanged', ()))} unchanged; {done}"])


@owners.command("bundle")
def owners_bundle(
    file: Annotated[Path, typer.Argument(help="Where it goes; an older one is replaced.")],
) -> None:
    """Write the trust bundle: what others need to verify this campus's credentials offline. It holds no secret."""
    result = ask("owners.bundle")
    file.write_text(result["bundle"], encoding="utf-8")
    show({"file": str(file), "bytes": len(result["bundle"].encode())}, text=f"written: {file}")


@owners.command("add")
def owners_add(
    ref: str,
    name: Annotated[str, typer.Option(help="Name for people.")] = "",
    kind: Annotated[str, typer.Option(help="person, device or policy.")] = "person",
    department: Annotated[str, typer.Option(help="Department that access policy reads.")] = "",
) -> None:
    """Add one owner."""
    show(ask("owners.add", ref=ref, name=name, kind=kind, department=department))


@owners.command("move")
def owners_move(ref: str, department: Annotated[str, typer.Option(help="New department.")]) -> None:
    """Put an owner into another department."""
    show(ask("owners.move", ref=ref, department=department))


@owners.command("add-key")
def owners_add_key(
    ref: str, statement: Annotated[Path, typer.Argument(help="Statement that `owner keygen` wrote.")]
) -> None:
    """Register an owner's approval key."""
    show(ask("owners.add_key", ref=ref, statement=read_text(statement).strip()))


@owners.command("rotate-key")
def owners_rotate_key(
    ref: str,
    statement: Annotated[Path, typer.Argument(help="Statement for the new key.")],
    overlap_hours: Annotated[
        float, typer.Option(help="How long the older keys may still approve, hours.", min=0, max=24 * 31)
    ] = 0.0,
) -> None:
    """Register a new approval key and retire the older ones, at once or after an overlap."""
    show(ask("owners.rotate_key", ref=ref, statement=read_text(statement).strip(), overlap_hours=overlap_hours))


@owners.command("suspend-key")
def owners_suspend_key(ref: str, jkt: Annotated[str, typer.Argument(help="Thumbprint of the key.")]) -> None:
    """Accept nothing new from one approval key until it is resumed; what it approved stays."""
    show(ask("owners.suspend_key", ref=ref, jkt=jkt))


@owners.command("resume-key")
def owners_resume_key(ref: str, jkt: Annotated[str, typer.Argument(help="Thumbprint of the key.")]) -> None:
    """End the suspension of an approval key."""
    show(ask("owners.resume_key", ref=ref, jkt=jkt))


@owners.command("revoke-key")
def owners_revoke_key(ref: str, jkt: Annotated[str, typer.Argument(help="Thumbprint of the key.")]) -> None:
    """Revoke one approval key and every live credential that it approved."""
    show(ask("owners.revoke_key", ref=ref, jkt=jkt))


@owners.command("add-client-key")
def owners_add_client_key(
    ref: str, statement: Annotated[Path, typer.Argument(help="Statement that `owner client-keygen` wrote.")]
) -> None:
    """Register the client key of an owner's tool, with which it fetches challenges; it approves nothing."""
    show(ask("owners.add_client_key", ref=ref, statement=read_text(statement).strip()))


@owners.command("revoke-client-key")
def owners_revoke_client_key(
    ref: str, jkt: Annotated[str, typer.Argument(help="Thumbprint of the client key.")]
) -> None:
    """Revoke the client key of an owner's tool; credentials stay."""
    show(ask("owners.revoke_client_key", ref=ref, jkt=jkt))


@owners.command("add-gateway")
def owners_add_gateway(
    ref: str,
    statement: Annotated[Path, typer.Argument(help="Statement that `owner gateway keygen` wrote.")],
    url: Annotated[str, typer.Option(help="Where proxies find it: https://HOST:PORT.")],
) -> None:
    """Register an owner's gateway: proxies learn its address and pin its server key."""
    show(ask("owners.add_gateway", ref=ref, url=url, statement=read_text(statement).strip()))


@owners.command("revoke-gateway")
def owners_revoke_gateway(ref: str, jkt: Annotated[str, typer.Argument(help="Thumbprint of the server key.")]) -> None:
    """Name a gateway to no proxy any more; credentials stay."""
    show(ask("owners.revoke_gateway", ref=ref, jkt=jkt))


@owners.command("allow-proxy")
def owners_allow_proxy(ref: str, proxy: Annotated[str, typer.Argument(help="Identifier of the proxy.")]) -> None:
    """Name a proxy that may submit for an owner; from the first one on, only named ones may."""
    show(ask("owners.allow_proxy", ref=ref, proxy=proxy))


@owners.command("show")
def owners_show(ref: str) -> None:
    """One owner with keys, agents and everything that was issued in its name."""
    show(ask("owners.show", ref=ref))


@owners.command("list")
def owners_list() -> None:
    """Owners."""
    show(ask("owners.list"), ("ref", "identifier", "name", "kind", "department", "state", "source", "keys"))


@owners.command("standing")
def owners_standing(ref: str) -> None:
    """An owner's standing approvals, under which agents renew without asking."""
    show(ask("owners.standing", ref=ref), ("s256", "agent", "state", "uses", "max_uses", "until", "used_at"))


@owners.command("withdraw-standing")
def owners_withdraw_standing(
    ref: str, s256: Annotated[str, typer.Argument(help="Hash of the standing approval, as `standing` shows it.")]
) -> None:
    """Withdraw a standing approval for good; credentials that were issued under it stay."""
    show(ask("owners.withdraw_standing", ref=ref, s256=s256))


@owners.command("suspend")
def owners_suspend(ref: str) -> None:
    """Deny everything in an owner's name until resumed."""
    show(ask("owners.suspend", ref=ref))


@owners.command("resume")
def owners_resume(ref: str) -> None:
    """End a suspension."""
    show(ask("owners.resume", ref=ref))


@owners.command("revoke")
def owners_revoke(ref: str) -> None:
    """Revoke an owner and every credential issued in the owner's name."""
    show(ask("owners.revoke", ref=ref))


@agents.command("add")
def agents_add(
    proxy_id: Annotated[str, typer.Option("--proxy", help="Identifier of its proxy.")],
    jkt: Annotated[str, typer.Option(help="Thumbprint (RFC 7638) of the agent's key.")],
    owner_ref: Annotated[
        str, typer.Option("--owner", help="Owner: ref or identifier; none = the agent acts for itself.")
    ] = "",
    class_: Annotated[str, typer.Option("--class", help="Agent class.")] = "",
) -> None:
    """Register an agent beforehand."""
    show(ask("agents.add", owner=owner_ref, proxy=proxy_id, jkt=jkt, agent_class=class_))


@agents.command("list")
def agents_list(owner_ref: Annotated[str, typer.Option("--owner", help="Only this owner's.")] = "") -> None:
    """Agents."""
    show(ask("agents.list", owner=owner_ref), ("identifier", "owner", "proxy", "class", "state", "serial", "not_after"))


@agents.command("show")
def agentsshow(agent_id: str) -> None:
    """One agent with its credentials and what stands behind them."""
    show(ask("agents.show", agent=agent_id))


@agents.command("classify")
def agents_classify(
    agent_id: str, class_: Annotated[str, typer.Option("--class", help="Agent class; empty for none.")]
) -> None:
    """Give an agent another class, or none: policy sees it at the next login, sessions at once; credentials stay."""
    show(ask("agents.classify", agent=agent_id, agent_class=class_))


@agents.command("revoke")
def agents_revoke(agent_id: str, reason: Annotated[str, typer.Option(help="Why, for the log.")] = "") -> None:
    """Revoke an agent and its credentials."""
    show(ask("agents.revoke", agent=agent_id, reason=reason))


@agents.command("suspend")
def agents_suspend(agent_id: str, reason: Annotated[str, typer.Option(help="Why, for the log.")] = "") -> None:
    """Refuse an agent's requests and logins until it is resumed; its credentials stay."""
    show(ask("agents.suspend", agent=agent_id, reason=reason))


@agents.command("resume")
def agents_resume(agent_id: str) -> None:
    """End a suspension."""
    show(ask("agents.resume", agent=agent_id))
