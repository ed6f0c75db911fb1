"""The verb of relying parties: is this credential what it says, and whose is it? Nothing is asked of a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.commands.invocation import read_text, show
from appliance.errors import RequestMalformed

if TYPE_CHECKING:
    from appliance.binding.bundle import TrustBundle
    from appliance.binding.verify import Report

app = typer.Typer(rich_markup_mode=None)


@app.command("verify")
def verify(
    owners: Annotated[Path, typer.Option("--owners", help="Trust bundle, as `appliance owners bundle` writes it.")],
    cert: Annotated[
        Path | None, typer.Option("--cert", help="Dual-identity certificate, PEM, its issuer may follow.")
    ] = None,
    wit: Annotated[Path | None, typer.Option("--wit", help="Workload identity token.")] = None,
    at: Annotated[str, typer.Option("--at", help="Moment to verify for, as 2026-01-31T12:00:00Z; default: now.")] = "",
) -> None:
    """Verify a dual-identity certificate or WIT offline, step by step; revocation is not looked at."""
    from appliance.binding import bundle

    if (cert is None) == (wit is None):
        raise typer.BadParameter("either --cert or --wit")
    trusted = bundle.read(read_text(owners))
    moment = _moment(at)
    report = _certificate(cert, trusted, moment) if cert is not None else _wit(read_text(wit), trusted, moment)  # type: ignore[arg-type]
    result: dict[str, Any] = {
        "ok": True,
        "agent": report.agent_id,
        "owner": report.owner_id,
        "owner_key": report.owner_key_jkt,
        "model": str(report.model),
        "approval": report.approval.jti if report.approval is not None else None,
        "bundle_made_at": trusted.made_at.isoformat(),
        "steps": [{"step": name, "found": found} for name, found in report.steps],
    }
    lines = [f"{name:<16} {found}" for name, found in report.steps]
    who = f"verified: {report.agent_id} for {report.owner_id} ({report.model})"
    show(result, text="\n".join([*lines, who, "revocation was not looked at"]))


def _certificate(file: Path, trusted: TrustBundle, at: Any) -> Report:
    from cryptography import x509

    from appliance.binding.facts import Limits
    from appliance.binding.verify import verify_certificate

    try:
        leaf, *others = x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError as cause:
        raise RequestMalformed(f"{file} holds no PEM certificate") from cause
    return verify_certificate(
        leaf,
        others,
        trusted.domain,
        trusted.owners.get,
        at=at,
        arc=trusted.arc,
        limits=Limits(backdating_seconds=trusted.backdating_seconds),
    )


def _wit(text: str, trusted: TrustBundle, at: Any) -> Report:
    from appliance.binding.verify import verify_wit

    return verify_wit(
        text.strip(), trusted.domain, trusted.owners.get, issuer=trusted.issuer, issuer_keys=trusted.wit_keys, at=at
    )


def _moment(text: str) -> Any:
    from datetime import UTC, datetime

    if not text:
        from appliance.clock import SystemClock

        return SystemClock().now()
    try:
        found = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as cause:
        raise RequestMalformed("--at must be a date and time, as 2026-01-31T12:00:00Z") from cause
    return found if found.tzinfo else found.replace(tzinfo=UTC)
