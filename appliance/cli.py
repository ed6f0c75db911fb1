"""The command line, put together. Verbs stand in appliance/commands; this module runs one and words its failure.

Exit status: 0 done, 1 refused or failed (one line on standard error), 2 usage. Typer reads the signature of every
command that it is given, which takes longer than most of them: it is given those of the noun that was named. Imports
that cost time stand inside the commands.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Final

import typer

from appliance.commands.invocation import EVERYWHERE, begin, hoist
from est.errors import Refusal

_VERBS: Final[Mapping[str, str]] = MappingProxyType(
    {**dict.fromkeys(("init", "run", "check", "doctor", "settings", "backup", "restore"), "itself"), "verify": "verify"}
)
"""The module in appliance/commands of each verb without a noun; there it is a command of `app`."""

_NOUNS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "manufacturers": "devices.manufacturers",
        "pledges": "devices.pledges",
        "proxies": "devices.proxies",
        "est": "devices.est_secrets",
        "owners": "people.owners",
        "directory": "directory.directory",
        "agents": "people.agents",
        "certs": "certificates.certs",
        "ca": "authorities.ca",
        "policy": "decisions.policy",
        "radius": "network.radius",
        "nas": "network.nas",
        "audit": "auditing.audit",
        "access": "decisions.access",
        "trust": "trust.trust",
        "sessions": "network.sessions",
        "proxy": "hosts.proxy",
        "owner": "life.owner",
        "agent": "life.agent",
    }
)
"""The module in appliance/commands of each noun, and what its group is called there."""


def application(word: str = "") -> typer.Typer:
    """The whole application; for the first word of a command line that is a noun or verb, as much as it needs."""
    made = typer.Typer(
        name="appliance",
        help="Campus network bootstrap: enrols identity proxies, issues dual-identity credentials, answers RADIUS.",
        epilog=EVERYWHERE,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    made.callback()(_at_the_top)
    is_known = word in _VERBS or word in _NOUNS
    for module in dict.fromkeys(file for verb, file in _VERBS.items() if verb == word or not is_known):
        made.add_typer(import_module(f"appliance.commands.{module}").app)
    for noun, place in _NOUNS.items():
        if noun == word or not is_known:
            module, _, group = place.partition(".")
            made.add_typer(getattr(import_module(f"appliance.commands.{module}"), group), name=noun)
    return made


def _show_version(wanted: bool) -> None:
    if wanted:
        from appliance.version import version  # importlib.metadata costs time

        print(f"appliance {version()}")
        raise typer.Exit


def _at_the_top(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """What may stand before noun and verb, beside the options that may stand anywhere."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Console script: runs one command and exits with its status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; answers the exit status."""
    try:
        invocation, rest = hoist(arguments)
        begin(invocation)
        application(rest[0] if rest else "")(args=rest, standalone_mode=True)
    except typer.BadParameter as wrong:
        print(f"appliance: {wrong.message}", file=sys.stderr)
        return 2
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
    except Refusal as refused:
        reason = refused.fields.get("reason", refused.reason)
        print(f"appliance: {reason}: {refused.detail}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # whoever read our output has gone; nothing may be written there any more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as failed:
        # a folder that cannot be made, a full disk: the system's own words, in one line
        place = f"{failed.filename}: " if failed.filename is not None else ""
        print(f"appliance: failed: {place}{failed.strerror or failed}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    main()
