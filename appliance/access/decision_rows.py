"""A decision as a row of the log, and back: write and read side by side.

The row has what is searched as columns and the whole reason chain as JSON text, `trace`. Nothing in a written row is a
container: thousands of them wait in memory, and the garbage collector must not walk them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from json import JSONEncoder
from json.encoder import encode_basestring as _quoted
from typing import Any, cast

from radius import AccessRequest, Asked, CredentialRef, Decision, Step
from radius.bypass import canonical_mac
from radius.decision import Outcome, Verdict
from radius.reasons import REASONS, STAGES, Stage

_encode = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def row_of(decision: Decision, time: datetime, times: int | None = None) -> dict[str, Any]:
    """A decision as a row; `times` says how many alike it stands for."""
    request = decision.request
    return {
        "time": time,
        "verdict": decision.verdict,
        "vlan": None if decision.vlan is None else str(decision.vlan),
        "reason": decision.reason_code,
        "nas": request.nas or request.nas_address,
        "port": request.nas_port,
        "mac": canonical_mac(request.calling_station) or request.calling_station or None,
        "session": request.session,
        "agent_id": decision.agent_id or None,
        "owner_id": decision.owner_id or None,
        "department": decision.department,
        "serial": None if request.credential is None else f"{request.credential.serial:x}",
        "policy_revision": decision.policy_revision,
        "trace": _trace(decision),
        "times": times,
    }


def _trace(decision: Decision) -> str:
    """The reason chain as JSON text, by hand: a general encoder takes longer over it than the decision took."""
    steps = ",".join(
        f'{{"stage":"{stage}","outcome":"{outcome}","evidence":{_quoted(evidence)}}}'
        for stage, outcome, evidence in decision.steps
    )
    request = decision.request
    more = ""
    if decision.asked is not None:
        more += f',"asked":{_encode(decision.asked)}'
    if decision.role or decision.filter_id or decision.note:
        more += (
            f',"role":{_quoted(decision.role)},"filter_id":{_quoted(decision.filter_id)},'
            f'"note":{_quoted(decision.note)}'
        )
    if decision.session_timeout is not None:
        more += f',"session_timeout":{decision.session_timeout}'
    if request.method != "eap-tls":
        more += f',"method":{_quoted(request.method)},"transport":{_quoted(request.transport)}'
    aki = "" if request.credential is None else request.credential.aki
    return (
        f'{{"steps":[{steps}],"rule":{_quoted(decision.rule)},"hint":{_quoted(decision.hint)},'
        f'"txn":{_quoted(decision.txn)},"user_name":{_quoted(request.user_name)},"tls":{_quoted(request.tls_version)},'
        f'"vlan_name":{_quoted(decision.vlan_name)},"aki":{_quoted(aki)},"address":{_quoted(request.nas_address)}'
        f',"called":{_quoted(request.called_station)}{more}}}'
    )


def decision_of(row: Mapping[str, Any]) -> Decision:
    """The decision in a row, as far as the row keeps it; one of an older release has less."""
    trace: Mapping[str, Any] = row["trace"] or {}
    by_stage = {step["stage"]: step for step in trace.get("steps", ())}
    tls, held, owned, ruled = (_step(stage, by_stage.get(stage)) for stage in STAGES)
    vlan = row["vlan"]
    ref = CredentialRef(trace.get("aki", ""), int(row["serial"], 16)) if row["serial"] else None
    request = AccessRequest(
        nas=row["nas"] or "",
        nas_address=trace.get("address", ""),
        nas_port=row["port"] or "",
        calling_station=row["mac"] or "",
        called_station=trace.get("called", ""),
        user_name=trace.get("user_name", ""),
        session=row["session"] or "",
        tls_version=trace.get("tls", ""),
        credential=ref,
        method=trace.get("method", "eap-tls"),
        transport=trace.get("transport", ""),
    )
    return Decision(
        verdict=cast(Verdict, row["verdict"]),
        vlan=int(vlan) if vlan is not None and vlan.isdecimal() else vlan,
        vlan_name=trace.get("vlan_name", ""),
        reason_code=row["reason"] if row["reason"] in REASONS else "radius-rejected",
        rule=trace.get("rule", ""),
        steps=(tls, held, owned, ruled),
        hint=trace.get("hint", ""),
        policy_revision=row["policy_revision"] or 0,
        request=request,
        agent_id=row["agent_id"] or "",
        owner_id=row["owner_id"] or "",
        department=row["department"] or "",
        txn=trace.get("txn", ""),
        role=trace.get("role", ""),
        filter_id=trace.get("filter_id", ""),
        session_timeout=trace.get("session_timeout"),
        note=trace.get("note", ""),
        asked=asked_of(row),
    )


def asked_of(row: Mapping[str, Any]) -> Asked | None:
    """What the rules were asked with; None where they were not, or where an older release did not keep it."""
    found = (row["trace"] or {}).get("asked")
    if found is None:
        return None
    credential, kind, departments, *rest = found
    return Asked(credential, kind, tuple(departments), *rest)


def _step(stage: Stage, found: Mapping[str, Any] | None) -> Step:
    if found is None:
        return Step(stage, "not-reached", "")
    return Step(stage, cast(Outcome, found["outcome"]), found["evidence"])


def as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for people and programs: what `appliance access log -o json` prints."""
    trace = row["trace"] or {}
    return {
        "id": row["id"],
        "time": row["time"].isoformat(timespec="milliseconds"),
        "verdict": row["verdict"],
        "vlan": row["vlan"],
        "vlan_name": trace.get("vlan_name", ""),
        "reason": row["reason"],
        "rule": trace.get("rule", ""),
        "agent": row["agent_id"] or "",
        "owner": row["owner_id"] or "",
        "department": row["department"],
        "serial": row["serial"],
        "nas": row["nas"],
        "port": row["port"],
        "mac": row["mac"] or "",
        "session": row["session"],
        "policy_revision": row["policy_revision"],
        "times": row["times"] or 1,
        "trace": trace,
    }
