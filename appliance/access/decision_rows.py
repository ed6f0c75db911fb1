"""A decision as a row of the log, and back: write and read side by side.

The row has what is searched as columns and the whole reason chain as JSON text, `trace`. It is a tuple of texts and
numbers as the database keeps them: thousands wait in memory, and neither the garbage collector nor the writer's thread
has anything to do with each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from json.encoder import encode_basestring as _quoted
from typing import Any, cast

import orjson

from appliance.store.columns import from_micros, to_micros
from appliance.store.decisions import COLUMNS
from radius import AccessRequest, Asked, CredentialRef, Decision, Step
from radius.bypass import canonical_mac
from radius.decision import Outcome, Verdict
from radius.reasons import REASONS, STAGES, Stage
from radius.request import EAP_TLS
from radius.rules import ssid_of


def row_of(decision: Decision, time: datetime, times: int | None = None) -> tuple[Any, ...]:
    """A decision as a row in stored form, in the order of decisions.COLUMNS; `times` says how many it stands for."""
    request = decision.request
    station = _mac(request.calling_station)
    return (
        to_micros(time),
        decision.verdict,
        None if decision.vlan is None else str(decision.vlan),
        decision.reason_code,
        request.nas or request.nas_address,
        request.nas_port,
        station,
        request.session,
        decision.agent_id or None,
        decision.owner_id or None,
        decision.department,
        None if request.credential is None else f"{request.credential.serial:x}",
        decision.policy_revision,
        _trace(decision, station or ""),
        times,
    )


def _mac(station: str) -> str | None:
    """A MAC address in the one form that is searched for; a text that is none stays as it is."""
    if len(station) == 17 and station[2] == "-" and station == station.upper():
        return station  # as most NAS send it
    return canonical_mac(station) or station or None


def _trace(decision: Decision, station: str) -> str:
    """The reason chain as JSON text, by hand: a general encoder takes longer over it than the decision took."""
    request, asked = decision.request, decision.asked
    (_, tls, why_tls), (_, held, why_held), (_, owned, why_owned), (_, ruled, why_ruled) = decision.steps
    parts = [
        f'{{"steps":[{{"stage":"tls","outcome":"{tls}","evidence":{_quoted(why_tls)}}},'
        f'{{"stage":"credential","outcome":"{held}","evidence":{_quoted(why_held)}}},'
        f'{{"stage":"owner","outcome":"{owned}","evidence":{_quoted(why_owned)}}},'
        f'{{"stage":"policy","outcome":"{ruled}","evidence":{_quoted(why_ruled)}}}],'
        f'"rule":{_quoted(decision.rule)},"hint":{_quoted(decision.hint)},"txn":{_quoted(decision.txn)},'
        f'"user_name":{_quoted(request.user_name)},"tls":{_quoted(request.tls_version)},'
        f'"vlan_name":{_quoted(decision.vlan_name)},"address":{_quoted(request.nas_address)},'
        f'"called":{_quoted(request.called_station)}'
    ]
    if request.credential is not None:
        parts.append(f',"aki":{_quoted(request.credential.aki)}')
    if asked is not None:
        departments = ",".join([_quoted(one) for one in asked.departments])
        parts.append(
            f',"asked":["{asked.credential}",{_quoted(asked.owner_kind)},[{departments}],{_quoted(asked.agent_class)},'
            f"{_quoted(asked.tier)},{_quoted(asked.model)},{_quoted(asked.site)}]"
        )
    if decision.role or decision.filter_id or decision.note:
        parts.append(
            f',"role":{_quoted(decision.role)},"filter_id":{_quoted(decision.filter_id)},'
            f'"note":{_quoted(decision.note)}'
        )
    if decision.session_timeout is not None:
        parts.append(f',"session_timeout":{decision.session_timeout}')
    if request.method != EAP_TLS:
        parts.append(f',"method":{_quoted(request.method)},"transport":{_quoted(request.transport)}')
    if station != request.calling_station:
        parts.append(f',"station":{_quoted(request.calling_station)}')
    if request.nas_identifier not in ("", request.nas):
        parts.append(f',"nas_identifier":{_quoted(request.nas_identifier)}')
    parts.append("}")
    return "".join(parts)


def newest_accepts(rows: Iterable[tuple[Any, ...]], since: int) -> list[dict[str, Any]]:
    """Of each station the newest row that let it in, oldest first, as decisions.accepted() has it from the store.

    `rows` are in stored form, oldest first; `since` is in microseconds. A row that was damaged is nobody's.
    """
    newest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        found = dict(zip(COLUMNS, row, strict=True))
        try:
            if found["time"] < since or found["verdict"] == "reject":
                continue
            found |= {"trace": orjson.loads(found["trace"]), "time": from_micros(found["time"])}
            key = found["trace"]["address"], found["mac"], found["port"] if found["mac"] is None else None
            newest.pop(key, None)
        except (TypeError, ValueError, KeyError):
            continue
        newest[key] = found
    return [*newest.values()]


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
        calling_station=trace.get("station", row["mac"] or ""),
        called_station=trace.get("called", ""),
        user_name=trace.get("user_name", ""),
        session=row["session"] or "",
        tls_version=trace.get("tls", ""),
        credential=ref,
        method=trace.get("method", "eap-tls"),
        transport=trace.get("transport", ""),
        nas_identifier=trace.get("nas_identifier", ""),
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
    credential, kind, departments, agent_class, tier, model, site = found
    called = ssid_of(row["trace"].get("called", ""))
    return Asked(
        credential,
        kind,
        tuple(departments),
        agent_class,
        tier,
        model,
        row["nas"] or "",
        row["port"] or "",
        called,
        site,
    )


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
