"""Verbs about certificates."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from appliance.commands.invocation import ask, group, invocation, show

certs = group("Certificates: every one that was issued here.")

_PAGE = 5000
_COLUMNS = ("serial", "issuer", "profile", "state", "subject", "owner", "department", "not_after")
_EXPORTED = (
    "serial",
    "issuer",
    "profile",
    "state",
    "subject",
    "agent",
    "owner",
    "department",
    "proxy",
    "not_before",
    "not_after",
    "issued_at",
    "revoked_at",
    "reason",
    "cert_sha256",
    "key_sha256",
)

Agent = Annotated[str, typer.Option("--agent", help="Only this agent's: identifier or UUID.")]
Owner = Annotated[str, typer.Option("--owner", help="Only those in this owner's name: ref or identifier.")]
Department = Annotated[str, typer.Option("--department", help="Only those of owners who are in this department now.")]
Proxy = Annotated[str, typer.Option("--proxy", help="Only this proxy's and those it asked for: identifier or UUID.")]
Serial = Annotated[str, typer.Option("--serial", help="Only this serial number, hexadecimal.")]
Key = Annotated[str, typer.Option("--key", help="Only for this key: SHA-256 of its SubjectPublicKeyInfo, hexadecimal.")]
State = Annotated[str, typer.Option("--state", help="Only live, revoked, expired or pending ones.")]
Before = Annotated[
    str, typer.Option("--expires-before", help="Only those that expire before: date, time, or 30d, 12h.")
]
After = Annotated[
    str, typer.Option("--expires-after", help="Only those that expire at or after: date, time, 30d, 12h.")
]
Issuer = Annotated[str, typer.Option("--issuer", help="devices, agents or infrastructure, if two CAs used the number.")]


@certs.command("list")
def certs_list(
    agent: Agent = "",
    owner: Owner = "",
    department: Department = "",
    proxy: Proxy = "",
    serial: Serial = "",
    key: Key = "",
    state: State = "",
    expires_before: Before = "",
    expires_after: After = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="Certificates on a page.")] = 50,
    page: Annotated[int, typer.Option("--page-before", help="What the page before this one named as next.")] = 0,
) -> None:
    """Certificates that fit everything given, newest first."""
    given = _given(agent, owner, department, proxy, serial, key, state, expires_before, expires_after)
    result = ask("certs.list", **given, limit=limit, before=page)
    if invocation().output == "json":
        show(result)
        return
    show(result["certificates"], _COLUMNS)
    if result["next"] is not None:
        print(f"more: --page-before {result['next']}", file=sys.stderr)


@certs.command("show")
def certs_show(serial: str, issuer: Issuer = "") -> None:
    """One certificate: what is known of it, and itself."""
    show(ask("certs.show", serial=serial, issuer=issuer))


@certs.command("evidence")
def certs_evidence(
    serial: str, out: Annotated[Path, typer.Option("--out", help="New folder for the evidence package.")]
) -> None:
    """Write what stands behind an agent's certificate: request, approvals, evidence, result, owner, audit entries."""
    files = ask("certs.evidence", serial=serial)
    out.mkdir(mode=0o700)
    for name, text in files.items():
        with (out / name).open("x", encoding="utf-8") as stream:
            stream.write(text)
    show({"folder": str(out), "files": sorted(files)}, text=f"written: {len(files)} files in {out}")


@certs.command("revoke")
def certs_revoke(
    serial: str,
    reason: Annotated[
        str, typer.Option("--reason", help="A CRLReason: keyCompromise, superseded, ...")
    ] = "unspecified",
    issuer: Issuer = "",
) -> None:
    """Revoke one certificate for good."""
    show(ask("certs.revoke", serial=serial, reason=reason, issuer=issuer))


@certs.command("take-crl")
def certs_take_crl(
    file: Annotated[Path, typer.Argument(help="A CRL that this home's CA signed, DER or PEM.")],
) -> None:
    """After a restored backup: revoke again what the last published list names."""
    show(ask("certs.take_crl", file=str(file.absolute())))


@certs.command("export")
def certs_export(
    agent: Agent = "",
    owner: Owner = "",
    department: Department = "",
    proxy: Proxy = "",
    serial: Serial = "",
    key: Key = "",
    state: State = "",
    expires_before: Before = "",
    expires_after: After = "",
    form: Annotated[str, typer.Option("--format", help="csv, json (one object per line) or pem.")] = "csv",
    file: Annotated[Path | None, typer.Option("--file", help="Write here, not to standard output.")] = None,
) -> None:
    """All certificates that fit everything given, newest first."""
    if form not in _WRITERS:
        raise typer.BadParameter("the format is csv, json or pem")
    given = _given(agent, owner, department, proxy, serial, key, state, expires_before, expires_after)
    pages = _pages({**given, "with_pem": form == "pem"})
    first = next(pages)  # a refusal must not leave an empty file
    if file is None:
        _WRITERS[form](sys.stdout, first, pages)
        return
    with file.open("x", encoding="utf-8", newline="") as stream:
        _WRITERS[form](stream, first, pages)


def _given(
    agent: str,
    owner: str,
    department: str,
    proxy: str,
    serial: str,
    key: str,
    state: str,
    expires_before: str,
    expires_after: str,
) -> dict[str, Any]:
    return {
        "agent": agent,
        "owner": owner,
        "department": department,
        "proxy": proxy,
        "serial": serial,
        "key": key,
        "state": state,
        "expires_before": expires_before,
        "expires_after": expires_after,
    }


def _pages(given: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    before: int | None = 0
    while before is not None:
        result = ask("certs.list", **given, limit=_PAGE, before=before)
        before = result["next"]
        yield result["certificates"]


def _csv(stream: TextIO, first: list[dict[str, Any]], rest: Iterator[list[dict[str, Any]]]) -> None:
    writer = csv.DictWriter(stream, _EXPORTED, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(first)
    for rows in rest:
        writer.writerows(rows)


def _json(stream: TextIO, first: list[dict[str, Any]], rest: Iterator[list[dict[str, Any]]]) -> None:
    for rows in chain((first,), rest):
        stream.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)


def _pem(stream: TextIO, first: list[dict[str, Any]], rest: Iterator[list[dict[str, Any]]]) -> None:
    for rows in chain((first,), rest):
        stream.writelines(row["pem"] for row in rows if row["pem"])


_WRITERS = {"csv": _csv, "json": _json, "pem": _pem}
