"""Verbs of the appliance itself: init, run, check, doctor, settings, backup, restore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.commands.invocation import ask, home, invocation, loaded, show

app = typer.Typer(rich_markup_mode=None)


@app.command()
def init(
    trust_domain: Annotated[str, typer.Option(help="Trust domain, such as campus.example.")] = "campus.example",
    org: Annotated[str, typer.Option(help="Organization name for the CAs' subjects.")] = "Campus",
) -> None:
    """Create keys, CAs, store and settings file; print what to do next."""
    from appliance.clock import SystemClock
    from appliance.initialise import initialise

    result = initialise(
        home(),
        SystemClock(),
        trust_domain=trust_domain,
        organization=org,
        assignments=invocation().assignments,
        passphrase_file=invocation().passphrase_file,
    )
    show(result, text=result["next"])


@app.command("run")
def run_everything() -> None:
    """Everything in the foreground; SIGTERM drains."""
    import asyncio

    from appliance.running import run_appliance

    def ready(line: dict[str, Any]) -> None:
        if invocation().output == "json":
            print(json.dumps(line), flush=True)
        else:
            listeners = "  ".join(f"{name} {address}" for name, address in line["listeners"].items() if address)
            print(f"ready (pid {line['pid']}, home {line['home']}): {listeners}", flush=True)

    asyncio.run(run_appliance(loaded(), passphrase_file=invocation().passphrase_file, on_ready=ready))


@app.command()
def check() -> None:
    """Validate settings, files, keys, chains, store and policy without starting."""
    from appliance.checks import check_home
    from appliance.clock import SystemClock

    rows = check_home(loaded(), SystemClock(), passphrase_file=invocation().passphrase_file)
    show(rows, ("check", "level", "message", "fix"))
    if any(row["level"] == "error" for row in rows):
        raise typer.Exit(1)


@app.command()
def doctor() -> None:
    """What `check` sees, and what the running appliance says of itself."""
    rows = ask("doctor")
    show(rows, ("check", "level", "message", "fix"))
    if any(row["level"] == "error" for row in rows):
        raise typer.Exit(1)


@app.command()
def settings() -> None:
    """Each setting with its value and origin."""
    found = loaded()
    rows = []
    for dotted, origin in found.origins.items():
        section, _, key = dotted.partition(".")
        value = getattr(getattr(found.settings, section), key)
        shown = [str(part) for part in value] if isinstance(value, tuple) else value
        rows.append({"setting": dotted, "value": str(shown) if isinstance(shown, Path) else shown, "origin": origin})
    show(rows, ("setting", "value", "origin"))


@app.command()
def backup(file: Annotated[Path, typer.Argument(help="Where the backup goes; it must not exist.")]) -> None:
    """Write one encrypted file with store, keys and settings."""
    show(ask("backup", file=str(file.absolute())))


@app.command()
def restore(file: Annotated[Path, typer.Argument(help="A backup file.")]) -> None:
    """Make the home anew from a backup."""
    from appliance.backup import restore_backup
    from appliance.initialise import need_passphrase

    show(restore_backup(home(), file, need_passphrase(home(), invocation().passphrase_file)))
