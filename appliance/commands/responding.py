"""`appliance owner respond`: a person at a terminal, or rules, answer the server's challenges."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from appliance.binding.challenge import BindingChallenge
from appliance.binding.webauthn import Authenticator
from appliance.clock import Clock
from appliance.owner.answer_policy import APPROVE, DENY, LEAVE, AnswerPolicy, Asked, DecisionBook
from appliance.owner.client import OwnerClient
from appliance.owner.respond import Answered, Decide, Decision, Responder
from appliance.owner.review import ReviewCard, render
from appliance.signals import until_signalled
from est.signer import Signer


async def run_responder(
    url: str,
    root: Path,
    client_folder: Path,
    signer: Signer | Authenticator,
    owner_id: str,
    clock: Clock,
    decide: Decide,
    tell: Callable[[dict[str, Any]], None],
    *,
    once: bool,
    wait_seconds: float,
) -> None:
    """Answers challenges until SIGTERM or SIGINT, one line for each; raises what the connection refuses."""

    def told(answered: Answered) -> None:
        tell({"event": "challenge-answered", **asdict(answered)})

    async with OwnerClient(url, root, client_folder) as client:
        responder = Responder(client, await client.server(clock.now()), signer, owner_id, clock, decide)
        tell({"event": "ready", "owner": owner_id, "server": url})
        await until_signalled(responder.run(told, once=once, wait_seconds=wait_seconds))


def asker(policy: AnswerPolicy | None, clock: Clock) -> Decide:
    """Who decides: the policy, or whoever sits at the terminal."""
    book = DecisionBook(clock)

    async def by_rule(card: ReviewCard, challenge: BindingChallenge) -> Decision:
        assert policy is not None
        asked = Asked.of_challenge(challenge, card.beside)
        verdict = policy.judge(asked, book.decided)
        book.note(verdict.rule, asked.sub)
        return Decision(verdict.answer)

    async def by_person(card: ReviewCard, challenge: BindingChallenge) -> Decision:
        print(render(card), file=sys.stderr)
        return await _in_daemon(lambda: _ask(card))

    return by_person if policy is None else by_rule


async def _in_daemon(ask: Callable[[], Decision]) -> Decision:
    """What a person says, in a thread that a signal need not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Decision] = loop.create_future()

    def settle(decision: Decision) -> None:
        if not future.done():
            future.set_result(decision)

    def run() -> None:
        decision = ask()
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, decision)

    threading.Thread(target=run, daemon=True).start()
    return await future


def _ask(card: ReviewCard) -> Decision:
    """The code is typed, never just confirmed: there is no default button (A-93)."""
    try:
        typed = typer.prompt(
            f"Type the code {card.short_code} to approve, 'deny {card.short_code}' to deny, anything else to leave it",
            err=True,
        ).strip()
    except typer.Abort:
        return Decision(LEAVE)
    is_denial = typed.lower().startswith("deny ")
    code = typed[5:].strip() if is_denial else typed
    if code.replace("-", "").replace(" ", "").upper() != card.short_code.replace("-", ""):
        return Decision(LEAVE)
    return Decision(DENY if is_denial else APPROVE, code)
