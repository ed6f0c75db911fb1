"""Verbs about the life of credentials: approvals beforehand, an owner's own view. They belong to `appliance owner`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.commands import hosts
from appliance.commands.hosts import KeyOption, OwnerOption
from appliance.commands.invocation import read_text, show, tell
from appliance.errors import RequestMalformed

if TYPE_CHECKING:
    from appliance.owner.client import OwnerClient

owner = hosts.owner
agent = hosts.agent

ClientOption = Annotated[Path, typer.Option("--client", help="Folder that `client-keygen` made.")]
UrlOption = Annotated[str, typer.Option("--server", help="Address of the device port: https://HOST:PORT.")]
RootOption = Annotated[Path, typer.Option("--root", help="The campus root certificate, PEM.")]


@owner.command("standing-sign")
def owner_standing_sign(
    owner_id: OwnerOption,
    key: KeyOption,
    agent_id: Annotated[str, typer.Option("--agent", help="The agent that may renew.")],
    server_id: Annotated[str, typer.Option("--server-id", help="Server identifier, as requests name it.")],
    proxy: Annotated[list[str], typer.Option("--proxy", help="Proxy behind which it may renew; may be repeated.")],
    ueid: Annotated[str, typer.Option("--ueid", help="The proxy's device as its evidence names it, hexadecimal.")],
    executable: Annotated[
        list[str], typer.Option("--executable", help="SHA-256 of the agent's program, hexadecimal; may be repeated.")
    ],
    uid: Annotated[int, typer.Option("--uid", help="User id that the program runs as.", min=0)],
    out: Annotated[Path, typer.Option(help="Where the standing approval goes.")],
    days: Annotated[float, typer.Option(help="How long it stands, days; at most 90.", min=0.001)] = 30.0,
    max_ttl: Annotated[int, typer.Option(help="Longest life of one credential, seconds.", min=60)] = 8 * 3600,
    max_uses: Annotated[int, typer.Option(help="How many renewals; 0 = as many as needed.", min=0)] = 0,
    agent_class: Annotated[str, typer.Option("--class", help="Only while the agent is of this class.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts that decided already.")] = False,
) -> None:
    """Approve an agent's renewals beforehand, within bounds: show them, ask for the code, write the signed object."""
    from appliance.binding import jws
    from appliance.binding.standing import Platform
    from appliance.clock import SystemClock
    from appliance.owner.keys import write_new
    from appliance.owner.standing import prepare, render, sign

    digests = tuple(jws.base64url(_hex(one, "--executable")) for one in executable)
    signer = hosts.approval_key(key)
    card = prepare(
        owner_id=owner_id,
        agent_id=agent_id,
        server_id=server_id,
        proxies=proxy,
        platform=Platform(_hex(ueid, "--ueid"), digests, uid),
        now=SystemClock().now(),
        days=days,
        max_ttl=max_ttl,
        max_uses=max_uses or None,
        agent_class=agent_class or None,
    )
    print(render(card), file=sys.stderr)
    question = f"Type {card.short_code} to approve, anything else to stop"
    signed = sign(card, signer, card.short_code if yes else typer.prompt(question, err=True))
    write_new(out, signed.token.encode("ascii") + b"\n", 0o644)
    show({"standing": str(out), "s256": signed.s256, "agent": agent_id, "until": signed.exp})


@owner.command("standing-submit")
def owner_standing_submit(
    file: Annotated[Path, typer.Argument(help="What `standing-sign` wrote.")],
    client: ClientOption,
    server: UrlOption,
    root: RootOption,
) -> None:
    """Hand a standing approval to the server, so that the agent need not carry it."""
    token = read_text(file).strip()
    show(_with_client(server, root, client, lambda one: one.hand_in_standing(token)))


@owner.command("standing-list")
def owner_standing_list(client: ClientOption, server: UrlOption, root: RootOption) -> None:
    """Your standing approvals: how often each was used, until when it stands."""
    rows = _with_client(server, root, client, lambda one: one.standing())
    show(rows, ("s256", "agent", "state", "uses", "max_uses", "until", "used_at"))


@owner.command("standing-withdraw")
def owner_standing_withdraw(
    s256: Annotated[str, typer.Argument(help="Hash, as `standing-list` shows it.")],
    client: ClientOption,
    server: UrlOption,
    root: RootOption,
) -> None:
    """Withdraw a standing approval for good; credentials issued under it live on until they end or are revoked."""
    show(_with_client(server, root, client, lambda one: one.withdraw_standing(s256)))


@owner.command("classify")
def owner_classify(
    agent_id: Annotated[str, typer.Argument(help="Your agent, as `issued` names it.")],
    class_: Annotated[str, typer.Option("--class", help="Agent class; one that the campus lets owners give.")],
    client: ClientOption,
    server: UrlOption,
    root: RootOption,
) -> None:
    """Give a class to an agent of yours that has none yet; to change it is the administrator's."""
    show(_with_client(server, root, client, lambda one: one.classify(agent_id, class_)))


@owner.command("passkey-register")
def owner_passkey_register(
    out: Annotated[Path, typer.Option(help="Folder for `passkey.json` and the statement.")],
    ref: Annotated[str, typer.Option(help="You, as the campus directory calls you.")],
    trust_domain: Annotated[str, typer.Option(help="The campus' trust domain.")] = "campus.example",
    scheme: Annotated[str, typer.Option(help="spiffe or wimse.")] = "spiffe",
    rp_id: Annotated[str, typer.Option("--rp-id", help="Relying party; default: the trust domain.")] = "",
    origin: Annotated[str, typer.Option(help="Origin; default: https:// and the relying party.")] = "",
) -> None:
    """Make an approval key on a FIDO2 key (passkey) and the statement that the administrator registers."""
    from appliance.binding.webauthn import Passkey
    from appliance.clock import SystemClock
    from appliance.owner.passkey import register

    place = Passkey(rp_id or trust_domain, origin or f"https://{rp_id or trust_domain}")
    audience = f"{scheme}://{trust_domain}"
    made = register(out, ref=ref, audience=audience, passkey=place, now=SystemClock().now())
    show(
        {
            "key": str(made.key_file),
            "statement": str(made.statement_file),
            "jkt": made.jkt,
            "next": f"give the statement to your administrator: appliance owners add-key {ref} owner-key.jwt",
        }
    )


@owner.command("issued")
def owner_issued(client: ClientOption, server: UrlOption, root: RootOption) -> None:
    """Everything that was issued in your name or approved by you beside another owner, newest first.

    With what was measured at each issue of an agent of yours.
    """
    told = _with_client(server, root, client, lambda one: one.issued())
    mine = {"owner": told.get("owner", "")}
    rows = [{**mine, **row, **(row.get("platform") or {})} for row in told.get("credentials", ())]
    rows += told.get("beside", ())
    from appliance.commands.invocation import invocation

    if invocation().output == "json":
        show(told)
    else:
        show(rows, ("serial", "agent", "owner", "model", "state", "not_before", "not_after", "proxy"))


def _with_client(server: str, root: Path, folder: Path, work: Callable[[OwnerClient], Awaitable[Any]]) -> Any:
    from appliance.owner.client import OwnerClient

    async def run() -> Any:
        async with OwnerClient(server, root, folder) as client:
            return await work(client)

    return asyncio.run(run())


def _hex(text: str, option: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as cause:
        raise RequestMalformed(f"{option} is hexadecimal") from cause


@agent.command("run")
def agent_run(
    socket: Annotated[Path, typer.Option(help="The proxy's Agent API.")],
    out: Annotated[Path, typer.Option(help="Folder of the credential; made by this command or by `request`.")],
    owner_id: Annotated[str, typer.Option("--owner", help="Identifier of the owner, for the first credential.")] = "",
    model: Annotated[str, typer.Option(help="Issuance model: agent-mediated or server-mediated.")] = "agent-mediated",
    standing: Annotated[
        list[str] | None,
        typer.Option("--standing", help="File of a standing approval, or its hash if the server has it; repeatable."),
    ] = None,
    approval_command: Annotated[
        str, typer.Option(help="Command that writes an approval, where no standing one covers it.")
    ] = "",
    profile: Annotated[
        list[str] | None, typer.Option("--profile", help="x509, wit; may be repeated. Default: both.")
    ] = None,
    label: Annotated[str, typer.Option(help="Name for people; shown to the owner as claimed by the agent.")] = "",
    claims: Annotated[
        Path | None, typer.Option(help="JSON file with what the agent says of itself: model, policy, abilities.")
    ] = None,
    ttl_seconds: Annotated[int, typer.Option(help="Life asked for, seconds.", min=60)] = 8 * 3600,
    wait_seconds: Annotated[float, typer.Option(help="How long to wait for an approval.", min=1)] = 600.0,
    on_renewed: Annotated[str, typer.Option(help="Command to run after each renewal; no shell.")] = "",
    pid_file: Annotated[Path | None, typer.Option(help="File with the pid to signal after each renewal.")] = None,
    pid: Annotated[int, typer.Option(help="The pid itself, instead of a file.", min=0)] = 0,
    signal_name: Annotated[str, typer.Option("--signal", help="Which signal.")] = "HUP",
    once: Annotated[bool, typer.Option("--once", help="Renew now, whatever the time, and end.")] = False,
) -> None:
    """Keep an agent's credential fresh: renew at two thirds of its life; in the foreground, SIGTERM stops it."""
    import shlex
    import signal

    from appliance.agent import AgentOptions
    from appliance.agent.keeper import Keeper, Notice, check_standing
    from appliance.agent.requester import read_claims
    from appliance.clock import SystemClock
    from appliance.signals import until_signalled

    profiles = tuple(dict.fromkeys(profile or ("x509", "wit")))
    if not set(profiles) <= {"x509", "wit"}:
        raise typer.BadParameter("a profile is x509 or wit")
    try:
        which = signal.Signals[f"SIG{signal_name.upper().removeprefix('SIG')}"]
        command = tuple(shlex.split(on_renewed))
    except (KeyError, ValueError) as wrong:
        raise typer.BadParameter(f"--signal or --on-renewed: {wrong}") from wrong
    if pid and pid_file is not None:
        raise typer.BadParameter("either --pid or --pid-file")
    check_standing(tuple(standing or ()))
    options = AgentOptions(
        socket=socket,
        out=out,
        owner=owner_id or None,
        model=model,
        profiles=profiles,
        ttl_seconds=ttl_seconds,
        label=label or None,
        claims=read_claims(claims),
        wait_seconds=wait_seconds,
        approval_command=approval_command or None,
    )
    notice = Notice(command, pid or None, pid_file, which)
    keeper = Keeper(options, SystemClock(), tell, standing=tuple(standing or ()), notice=notice)
    asyncio.run(until_signalled(keeper.run(once=once)))
