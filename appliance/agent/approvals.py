"""How owners' approvals come to an agent: from a command that is run without a shell, or in a file, one to a line."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path

from appliance.agent.errors import ApprovalNotGiven
from appliance.clock import Clock

POLL_SECONDS = 0.2


def command_words(command: str, *, request: Path, csr: Path | None, approval: Path) -> list[str]:
    """A command line with its placeholders filled, split as a shell would; raises ApprovalNotGiven."""
    paths = {"{request}": request, "{csr}": csr or "", "{approval}": approval}
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ApprovalNotGiven("the approval command has an open quote") from error
    for placeholder, path in paths.items():
        words = [word.replace(placeholder, str(path)) for word in words]
    if not words:
        raise ApprovalNotGiven("the approval command is empty")
    return words


async def from_command(words: list[str], approval: Path, *, seconds: float) -> tuple[str, ...]:
    """The approvals that a command has written when it ends, in time and well; raises ApprovalNotGiven."""
    try:
        # standard output belongs to our own result; the command's text goes beside it
        process = await asyncio.create_subprocess_exec(*words, stdout=2)
    except OSError as error:
        raise ApprovalNotGiven(f"the approval command does not start: {error.strerror}") from error
    try:
        status = await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError as error:
        raise ApprovalNotGiven("the approval command took too long") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise ApprovalNotGiven(f"the approval command ended with status {status}", status=status)
    if not (found := _read_tokens(approval)):
        raise ApprovalNotGiven(f"the approval command wrote no approval to {approval}")
    return found


async def from_file(
    approval: Path,
    *,
    clock: Clock,
    deadline: float,
    seconds: float,
    pause: Callable[[float], Awaitable[None]],
    count: int = 1,
) -> tuple[str, ...]:
    """So many approvals as people put into a file until `deadline` (monotonic), which is `seconds` after the start.

    Raises ApprovalNotGiven.
    """
    while len(found := _read_tokens(approval)) < count:
        if clock.monotonic() >= deadline:
            raise ApprovalNotGiven(f"no approval came to {approval} within {seconds:g} s")
        await pause(POLL_SECONDS)
    return found


def check_no_old_one(path: Path | None) -> None:
    """A file that is there before the request is made cannot be its approval; raises ApprovalNotGiven."""
    if path is not None and path.exists():
        raise ApprovalNotGiven(f"{path} exists already, from an earlier request: take it away first")


def _read_tokens(path: Path) -> tuple[str, ...]:
    """What stands in a file, if every line of it is whole."""
    try:
        lines = path.read_text(encoding="ascii").split()
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(lines) if all(map(_is_whole, lines)) else ()


def _is_whole(text: str) -> bool:
    # a file that is still being written has not all its parts
    by_passkey = text.count("~") == 3 and not text.endswith("~")
    return by_passkey or (text.count(".") == 2 and not text.endswith("."))
