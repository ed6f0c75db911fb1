"""The command line, put together. Verbs stand in appliance/commands; this module runs one and words its failure.

Exit status: 0 done, 1 refused or failed (one line on standard error), 2 usage. Imports that cost time stand inside
the commands, so that `--help` and completion stay quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer

from appliance.commands import (
    auditing,
    authorities,
    certificates,
    decisions,
    devices,
    directory,
    hosts,
    itself,
    life,
    network,
    people,
    trust,
    verify,
)
from appliance.commands.invocation import EVERYWHERE, begin, hoist
from est.errors import Refusal

app = typer.Typer(
    name="appliance",
    help="Campus network bootstrap: enrols identity proxies, issues dual-identity credentials, answers RADIUS.",
    epilog=EVERYWHERE,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(itself.app)
app.add_typer(verify.app)
app.add_typer(devices.manufacturers, name="manufacturers")
app.add_typer(devices.pledges, name="pledges")
app.add_typer(devices.proxies, name="proxies")
app.add_typer(devices.est_secrets, name="est")
app.add_typer(people.owners, name="owners")
app.add_typer(directory.directory, name="directory")
app.add_typer(people.agents, name="agents")
app.add_typer(certificates.certs, name="certs")
app.add_typer(authorities.ca, name="ca")
app.add_typer(decisions.policy, name="policy")
app.add_typer(network.radius, name="radius")
app.add_typer(network.nas, name="nas")
app.add_typer(auditing.audit, name="audit")
app.add_typer(decisions.access, name="access")
app.add_typer(trust.trust, name="trust")
app.add_typer(network.sessions, name="sessions")
app.add_typer(hosts.proxy, name="proxy")
app.add_typer(life.owner, name="owner")
app.add_typer(life.agent, name="agent")


def main(arguments: Sequence[str] | None = None) -> None:
    """Console script: runs one command and exits with its status."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; answers the exit status."""
    try:
        invocation, rest = hoist(arguments)
        begin(invocation)
        app(args=rest, standalone_mode=True)
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
