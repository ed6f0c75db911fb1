"""The verb of relying parties: is this credential what it says, and whose is it? Nothing is asked of a network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.commands.auditing import read_key
from appliance.commands.invocation import ask, read_text, show
from appliance.errors import RequestMalformed

if TYPE_CHECKING:
    from appliance.binding.bundle import TrustBundle
    from appliance.binding.relying import Judged, RelyingParty

_MAX_FILES = 32

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
    package: Annotated[
        Path | None, typer.Option("--package", help="Evidence package, as `appliance certs evidence` writes it.")
    ] = None,
    audit_key: Annotated[
        Path | None,
        typer.Option(
            "--audit-key", help="With --package: the key of the checkpoints, a JWK; the issue must stand in the log."
        ),
    ] = None,
    approval: Annotated[
        Path | None,
        typer.Option("--approval", help="With --cert or --wit: the approval whose hash it holds (standing, passkey)."),
    ] = None,
    card: Annotated[Path | None, typer.Option("--card", help="A2A agent card that its key signed.")] = None,
    at: Annotated[str, typer.Option("--at", help="Moment to verify for, as 2026-01-31T12:00:00Z; default: now.")] = "",
) -> None:
    """Verify a dual-identity certificate or WIT offline, step by step; revocation is not looked at."""
    from appliance.binding import bundle
    from appliance.binding.relying import RelyingParty

    if sum(one is not None for one in (cert, wit, package)) != 1:
        raise typer.BadParameter("one of --cert, --wit and --package")
    if audit_key is not None and package is None:
        raise typer.BadParameter("--audit-key belongs to --package")
    if package is not None and (approval is not None or card is not None):
        raise typer.BadParameter("a package is verified alone")
    if (proof is None) != (not target) or (proof is not None and wit is None):
        raise typer.BadParameter("--proof and --target belong together, and to --wit")
    texts = [read_text(one) for one in owners] if owners else ask("trust.bundles")
    trusted = {one.domain.origin: one for one in map(bundle.read, texts)}
    if package is not None:
        _show_package(package, trusted, _moment(at) if at else None, audit_key)
        return
    party, moment = RelyingParty(trusted.values()), _moment(at)
    beside = read_text(approval).strip() if approval is not None else None
    if cert is not None:
        judged = _certificate(cert, party, moment, beside)
    else:
        assert wit is not None  # one of the two is there
        proof_text = read_text(proof).strip() if proof is not None else None
        judged = party.wit(
            read_text(wit).strip(),
            at=moment,
            proof_text=proof_text,
            target=target,
            approval=beside,
            proof_needed=proof is not None,
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


def _show_package(folder: Path, trusted: Mapping[str, TrustBundle], at: Any, audit_key: Path | None) -> None:
    from appliance.binding.errors import OriginMismatch
    from appliance.binding.package import MAX_FILE, origin_of, verify_package

    files: dict[str, bytes] = {}
    for one in sorted(folder.iterdir()):
        if one.is_file() and len(files) < _MAX_FILES:
            with one.open("rb") as stream:
                files[one.name] = stream.read(MAX_FILE + 1)
    origin = origin_of(files)
    if origin not in trusted:
        raise OriginMismatch(f"no trust bundle of {origin} is at hand", expected=sorted(trusted), found=origin)
    report = verify_package(files, trusted[origin], at=at)
    found_steps = list(report.steps)
    if audit_key is not None:
        from appliance.evidence_package import check_inclusion

        signed = check_inclusion(files, report.issued, read_key(audit_key))
        found_steps.append(("log", f"{signed.size} entries of {signed.origin} at {signed.issued_at.isoformat()}"))
    steps = [{"step": name, "found": found} for name, found in found_steps]
    told = {"serial": report.serial, "agent": report.agent_id, "owner": report.owner_id, "model": report.model}
    lines = [f"{name:<16} {found}" for name, found in found_steps]
    who = f"verified: {report.serial} of {report.agent_id} for {report.owner_id} ({report.model})"
    show({"ok": True, **told, "steps": steps}, text="\n".join([*lines, who]))


def _certificate(file: Path, party: RelyingParty, at: Any, approval: str | None) -> Judged:
    from est.certificates import pem_certificates

    try:
        leaf, *others = pem_certificates(file.read_bytes())
    except ValueError as cause:
        raise RequestMalformed(f"{file} holds no PEM certificate") from cause
    return party.certificate(leaf, others, at=at, approval=approval)


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
