"""The verb of relying parties: is this credential what it says, and whose is it? Nothing is asked of a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.commands.invocation import ask, read_text, show
from appliance.errors import RequestMalformed

if TYPE_CHECKING:
    from appliance.binding.relying import Judged, RelyingParty

app = typer.Typer(rich_markup_mode=None)


@app.command("verify")
def verify(
    owners: Annotated[
        list[Path] | None,
        typer.Option(
            "--owners",
            help="Trust bundle, as `appliance owners bundle` writes it; may be repeated. "
            "Default: that of this home and those that `appliance trust` knows.",
        ),
    ] = None,
    cert: Annotated[
        Path | None, typer.Option("--cert", help="Dual-identity certificate, PEM, its issuer may follow.")
    ] = None,
    wit: Annotated[Path | None, typer.Option("--wit", help="Workload identity token.")] = None,
    proof: Annotated[Path | None, typer.Option("--proof", help="With --wit: the proof token beside it.")] = None,
    target: Annotated[str, typer.Option("--target", help="With --proof: the address that it must be made for.")] = "",
    card: Annotated[Path | None, typer.Option("--card", help="A2A agent card that its key signed.")] = None,
    at: Annotated[str, typer.Option("--at", help="Moment to verify for, as 2026-01-31T12:00:00Z; default: now.")] = "",
) -> None:
    """Verify a dual-identity certificate or WIT offline, step by step; revocation is not looked at."""
    from appliance.binding import bundle
    from appliance.binding.relying import RelyingParty

    if (cert is None) == (wit is None):
        raise typer.BadParameter("either --cert or --wit")
    if (proof is None) != (not target) or (proof is not None and wit is None):
        raise typer.BadParameter("--proof and --target belong together, and to --wit")
    texts = [read_text(one) for one in owners] if owners else ask("trust.bundles")
    trusted = {one.domain.origin: one for one in map(bundle.read, texts)}
    party, moment = RelyingParty(trusted.values()), _moment(at)
    if cert is not None:
        judged = _certificate(cert, party, moment)
    else:
        assert wit is not None  # one of the two is there
        proof_text = read_text(proof).strip() if proof is not None else None
        judged = party.wit(
            read_text(wit).strip(), at=moment, proof_text=proof_text, target=target, proof_needed=proof is not None
        )
    report = judged.report
    if card is not None:
        _check_card(card, judged)
    origin = report.agent_id.split("/agent/")[0]
    result: dict[str, Any] = {
        "ok": True,
        "agent": report.agent_id,
        "owner": report.owner_id,
        "owner_key": report.owner_key_jkt,
        "model": str(report.model),
        "approval": report.approval.jti if report.approval is not None else None,
        "proved_by": judged.proved_by,
        "campus": origin,
        "bundle_made_at": trusted[origin].made_at.isoformat(),
        "steps": [{"step": name, "found": found} for name, found in report.steps],
    }
    lines = [f"{name:<16} {found}" for name, found in report.steps]
    who = f"verified: {report.agent_id} for {report.owner_id} ({report.model})"
    show(result, text="\n".join([*lines, who, "revocation was not looked at"]))


def _certificate(file: Path, party: RelyingParty, at: Any) -> Judged:
    from cryptography import x509

    try:
        leaf, *others = x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError as cause:
        raise RequestMalformed(f"{file} holds no PEM certificate") from cause
    return party.certificate(leaf, others, at=at)


def _check_card(file: Path, judged: Judged) -> None:
    from appliance.binding import agent_card

    agent_card.verify(agent_card.read(file.read_bytes()), judged.key)


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
