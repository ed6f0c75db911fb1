"""`appliance owner gateway`: the gateway itself, its server key, and its owner's view of the queue."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.commands.invocation import group, invocation, passphrase, show, tell
from appliance.errors import NotFound

if TYPE_CHECKING:
    from appliance.owner.gateway.queue import Entry, Queue

gateway = group("The owner's gateway: proxies hand requests to it, it submits what the owner approved.")
queue = group("What waits at the gateway, for its owner to decide.")
gateway.add_typer(queue, name="queue")

StateOption = Annotated[Path, typer.Option(help="The gateway's state folder, with its queue.")]
ConfigOption = Annotated[Path, typer.Option(help="The gateway's file.")]
RqhArgument = Annotated[str, typer.Argument(help="The request: its hash, the beginning of it, or its short code.")]
KeyOption = Annotated[Path, typer.Option(help="The approval key that `owner keygen` made.")]
CodeOption = Annotated[str, typer.Option(help="The short code that the agent's side shows; default: you are asked.")]


@gateway.command("keygen")
def gateway_keygen(
    out: Annotated[Path, typer.Option(help="Folder for server key, certificate and statement.")],
    ref: Annotated[str, typer.Option(help="You, as the campus directory calls you.")],
    trust_domain: Annotated[str, typer.Option(help="The campus' trust domain.")] = "campus.example",
    scheme: Annotated[str, typer.Option(help="spiffe or wimse.")] = "spiffe",
) -> None:
    """Make the gateway's server key, and the statement that the administrator registers with its address."""
    from appliance.clock import SystemClock
    from appliance.owner.client_key import gateway_keygen as make

    made = make(out, ref=ref, audience=f"{scheme}://{trust_domain}", now=SystemClock().now())
    show(
        {
            "key": str(made.key_file),
            "certificate": str(made.certificate_file),
            "statement": str(made.statement_file),
            "jkt": made.jkt,
            "next": f"give the statement to your administrator: appliance owners add-gateway {ref} "
            f"{made.statement_file.name} --url https://HOST:PORT",
        }
    )


@gateway.command("statement")
def gateway_statement(
    key: Annotated[Path, typer.Option(help="Folder that `keygen` made.")],
    out: Annotated[Path, typer.Option(help="Where the statement goes.")],
    ref: Annotated[str, typer.Option(help="You, as that campus's directory calls you.")],
    trust_domain: Annotated[str, typer.Option(help="The other campus' trust domain.")],
    scheme: Annotated[str, typer.Option(help="spiffe or wimse.")] = "spiffe",
) -> None:
    """State the same server key for another campus, so that one gateway can work for several."""
    from appliance.clock import SystemClock
    from appliance.owner.client_key import gateway_statement as state

    jkt = state(key, out, ref=ref, audience=f"{scheme}://{trust_domain}", now=SystemClock().now())
    show({"statement": str(out), "jkt": jkt})


@gateway.command("run")
def gateway_run(config: ConfigOption, state: StateOption) -> None:
    """Serve proxies; in the foreground, SIGTERM stops it. --passphrase-file opens the key of the rules."""
    from appliance.clock import SystemClock
    from appliance.log import set_up_logging
    from appliance.owner.gateway.config import load_gateway_config
    from appliance.owner.gateway.run import run_gateway
    from appliance.settings import load_settings
    from appliance.signals import until_signalled

    set_up_logging(load_settings(None, invocation().assignments).settings.log)
    found = load_gateway_config(config)
    asyncio.run(until_signalled(run_gateway(found, state, SystemClock(), tell, passphrase=passphrase())))


@queue.command("list")
def queue_list(
    state: StateOption,
    all_: Annotated[bool, typer.Option("--all", help="Also what is decided, issued or over.")] = False,
) -> None:
    """What waits for you, in fair turns between proxies, renewals first."""
    from appliance.binding.request import short_code
    from appliance.clock import SystemClock
    from appliance.owner.gateway.deciding import seconds_of, state_of
    from appliance.owner.gateway.fair import in_turns
    from appliance.owner.gateway.states import WAITING

    now = seconds_of(SystemClock())
    with _opened(state) as found:
        entries = found.every() if all_ else [one for kind in WAITING for one in found.waiting(kind, now)]
    rows = [
        {
            "request": one.rqh,
            "code": short_code(one.rqh),
            "state": state_of(one, now).value,
            "purpose": one.purpose,
            "agent": one.agent,
            "proxy": one.proxy,
            "domain": one.domain,
            "left_seconds": max(0, one.expires - now),
            "rule": one.rule or "",
            "refused": one.refused or "",
        }
        for one in in_turns(entries, lambda entry: entry.proxy, lambda entry: entry.is_urgent)
    ]
    show(rows, ("code", "state", "purpose", "agent", "proxy", "left_seconds", "refused"))


@queue.command("show")
def queue_show(request: RqhArgument, state: StateOption) -> None:
    """One request as it would be signed, read out of its own bytes, and what its proxy has measured."""
    from appliance.clock import SystemClock
    from appliance.owner.gateway.deciding import card_of, seconds_of, state_of
    from appliance.owner.review import render

    clock = SystemClock()
    with _opened(state) as found:
        entry = _find(found, request)
    card = card_of(entry, clock)
    asked = card.request
    facts = {
        "request": entry.rqh, "code": card.short_code, "state": state_of(entry, seconds_of(clock)).value,
        "agent": asked.sub, "owner": asked.owner, "server": asked.aud, "proxy": entry.proxy, "jkt": asked.jkt,
        "purpose": asked.purpose, "profiles": list(asked.profiles), "ttl_seconds": asked.ttl, "expires": asked.exp,
        "claimed_label": asked.label, "executable": entry.executable, "uid": entry.uid, "rule": entry.rule,
        "refused": entry.refused,
    }  # fmt: skip
    measured = f"measured by proxy  program {entry.executable or 'unknown'}, user {entry.uid}\n"
    show(facts, text=render(card) + measured)


@queue.command("approve")
def queue_approve(
    request: RqhArgument,
    state: StateOption,
    key: KeyOption,
    code: CodeOption = "",
    org: Annotated[list[Path] | None, typer.Option(help="Organisational material to go along; one file each.")] = None,
) -> None:
    """Show a request, ask for its code, sign it; the gateway submits it when its proxy comes again."""
    _decide(request, state, key, code, deny=False, org=org or [])


@queue.command("deny")
def queue_deny(request: RqhArgument, state: StateOption, key: KeyOption, code: CodeOption = "") -> None:
    """Sign a no; the same program is not heard again for a while."""
    _decide(request, state, key, code, deny=True, org=[])


@queue.command("log")
def queue_log(state: StateOption) -> None:
    """Decisions with their reasons, newest first."""
    with _opened(state) as found:
        rows = found.decisions()
    show(rows, ("at", "decision", "decider", "rule", "why", "agent"))


def _decide(request: str, state: Path, key: Path, code: str, *, deny: bool, org: list[Path]) -> None:
    from appliance.clock import SystemClock
    from appliance.owner.gateway.config import read_org
    from appliance.owner.gateway.deciding import by_person, card_of
    from appliance.owner.keys import load
    from appliance.owner.review import render

    clock, material = SystemClock(), read_org(org)
    with _opened(state) as found:
        entry = _find(found, request)
        card = card_of(entry, clock)
        print(render(card), file=sys.stderr)
        signer = load(key, passphrase=passphrase())
        if not code:
            # the code is typed, never just confirmed: there is no default button
            code = typer.prompt(
                f"Type the code {card.short_code} to {'deny' if deny else 'approve'}, anything else to stop", err=True
            )
        after = by_person(found, entry, signer, clock, deny=deny, code=code, org=material)
    show({"request": entry.rqh, "agent": entry.agent, "state": after.value})


@contextmanager
def _opened(state: Path) -> Iterator[Queue]:
    from appliance.owner.gateway.queue import Queue

    found = Queue.open(state)
    try:
        yield found
    finally:
        found.close()


def _find(found: Queue, name: str) -> Entry:
    """By hash, the beginning of it (8 characters at least), or short code; raises NotFound."""
    from appliance.binding.request import short_code

    matching = found.find(name) if len(name) >= 8 else []
    if len(matching) == 1:
        return matching[0]
    plain = name.replace("-", "").upper()
    matching = [one for one in found.every() if short_code(one.rqh).replace("-", "") == plain]
    if len(matching) != 1:
        raise NotFound("no request, or more than one, has this hash or code")
    return matching[0]


def as_events(event: dict[str, Any]) -> None:
    """A gateway's event beside those of the proxy in the same process."""
    tell({**event, "event": f"gateway-{event['event']}"})
