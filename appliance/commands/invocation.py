"""What every verb uses: the options that may stand anywhere, asking an operation, showing a result."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import typer
from typer.core import TyperCommand

from appliance.errors import ApplianceError
from appliance.settings import LoadedSettings, default_home, load_settings


class FileUnreadable(ApplianceError):
    """A file named on the command line cannot be read."""

    reason: ClassVar[str] = "file-unreadable"


EVERYWHERE = (
    "Everywhere, before or after the verb: --home DIR, -o table|json, --passphrase-file FILE, --set section.key=value."
)


@dataclass(slots=True)
class Invocation:
    """The options that may stand anywhere on the command line."""

    home: Path | None = None
    output: Literal["table", "json"] = "table"
    passphrase_file: Path | None = None
    assignments: list[str] = field(default_factory=list)


# typer keeps its click to itself, so the options travel beside it
_CURRENT: ContextVar[Invocation] = ContextVar("invocation")


_HASH = re.compile(r"-[A-Za-z0-9_-]{42}")
_MARK = "\ue000"
"""A character for private use: before a thumbprint it keeps the parser from taking the dash for that of options."""


class _Verb(TyperCommand):
    """A command to which 43 characters that begin with a dash are a thumbprint or hash (base64url), never options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, [_MARK + one if _HASH.fullmatch(one) else one for one in args])
        ctx.params = {name: _unmarked(value) for name, value in ctx.params.items()}
        return rest


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(one) for one in value]
    if isinstance(value, str | Path) and (text := str(value)).startswith(_MARK) and _HASH.fullmatch(text[1:]):
        return type(value)(text[1:])
    return value


class _Group(typer.Typer):
    def command(self, name: str | None = None, **more: Any) -> Any:
        return super().command(name, **{"cls": _Verb, **more})


def group(text: str) -> typer.Typer:
    """A noun of the command line."""
    return _Group(help=text, no_args_is_help=True, rich_markup_mode=None, epilog=EVERYWHERE)


def hoist(arguments: Sequence[str]) -> tuple[Invocation, list[str]]:
    """Takes the options that may stand anywhere out of a command line; raises typer.BadParameter."""
    invocation, rest, queue = Invocation(), [], list(arguments)
    names = ("--home", "-o", "--output", "--passphrase-file", "--set")
    while queue:
        argument = queue.pop(0)
        if argument == "--":
            rest += [argument, *queue]
            break
        option, equals, value = argument.partition("=")
        if option not in names or (equals and option == "-o"):
            rest.append(argument)
            continue
        if not equals:
            if not queue:
                raise typer.BadParameter(f"{option} wants a value")
            value = queue.pop(0)
        match option:
            case "--home":
                invocation.home = Path(value)
            case "--passphrase-file":
                invocation.passphrase_file = Path(value)
            case "--set":
                invocation.assignments.append(value)
            case _ if value in ("table", "json"):
                invocation.output = value  # type: ignore[assignment]
            case _:
                raise typer.BadParameter(f"{option} is table or json, not {value!r}")
    return invocation, rest


def begin(invocation: Invocation) -> None:
    """Makes these the options of the command that runs next in this context."""
    _CURRENT.set(invocation)


def invocation() -> Invocation:
    """The options of the command that is running."""
    return _CURRENT.get()


def loaded() -> LoadedSettings:
    """Settings of the chosen home with the command line's assignments."""
    return load_settings(invocation().home, invocation().assignments)


def home() -> Path:
    """The chosen home."""
    return (invocation().home or default_home()).absolute()


def ask(operation: str, **arguments: Any) -> Any:
    """Result of an operation: from the running appliance if there is one, else from the home itself."""
    from appliance.home import admin_socket, is_locked

    found = loaded()
    home = found.settings.home
    if is_locked(home):
        from appliance.console.client import call

        return call(admin_socket(home), operation, arguments)
    from appliance.running import ask_home  # everything is imported only where the home is opened

    return ask_home(found.settings, operation, arguments, passphrase_file=invocation().passphrase_file)


def show(result: Any, columns: Sequence[str] = (), *, text: str = "") -> None:
    """Prints a result: JSON as it is; else `text`, or rows as a table of `columns`, or a record line by line."""
    if invocation().output == "json":
        print(json.dumps(result, indent=2, ensure_ascii=False))
    elif text:
        print(text)
    else:
        from appliance.console.tables import render

        print(render(result, columns), end="")


def read_text(path: Path) -> str:
    """A text file named on the command line; raises FileUnreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise FileUnreadable(f"cannot read {path}: {getattr(cause, 'strerror', None) or 'not text'}") from cause


def passphrase() -> bytes | None:
    """What --passphrase-file holds; raises FileUnreadable."""
    file = invocation().passphrase_file
    if file is None:
        return None
    try:
        return file.read_bytes().strip()
    except OSError as cause:
        raise FileUnreadable(f"cannot read {file}: {cause.strerror}") from cause


def tell(event: dict[str, Any]) -> None:
    """One event of a program in the foreground, one line."""
    if invocation().output == "json":
        line = json.dumps(event)
    else:
        line = "  ".join(f"{key}={value}" for key, value in event.items() if value not in ("", None))
    print(line, flush=True)
