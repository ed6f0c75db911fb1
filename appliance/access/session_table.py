"""What an Access-Accept and an accounting message mean for the table of live sessions: functions over a Tx.

A session is a station at a NAS: NAS address and MAC address (or, without one, the port). An Access-Accept makes it, in
state `assumed`; accounting confirms it, counts its octets and ends it. The Class that we sent names the credential's
transaction, so a message that brings it back is bound to the very decision; without it NAS and MAC must do.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from appliance.store import sessions
from appliance.store.columns import from_micros
from appliance.store.sessions import ASSUMED, ENDED, OPEN, Session
from appliance.store.transaction import Tx
from radius import AccessRequest, CredentialRef, Decision, to_attributes
from radius.accounting import AccountingRecord, mac_key

# names, words, and a time that runs and what comes after it: they change nothing at the port
_NOT_THE_OUTCOME = frozenset({1, 18, 25, 27, 29})
_NAMES = AccessRequest._fields
_FIELDS = frozenset(_NAMES)
_IDS = uuid.UUID("5d0e4a52-3a5c-4b0f-8b5e-6a1f1f0c9c11")


def granted(decision: Decision) -> str:
    """The reply attributes that make a difference at the port, as one text; empty for a reject."""
    if decision.verdict == "reject":
        return ""
    return "; ".join(
        f"{one.name}={one.text}"
        for one in to_attributes(decision, reply_message=False)
        if one.vendor or one.code not in _NOT_THE_OUTCOME
    )


def write_login(request: AccessRequest) -> dict[str, Any]:
    """What was decided upon, so that it can be decided again."""
    ref = request.credential
    found = {name: value for name in _NAMES if (value := getattr(request, name)) not in ("", None)}
    if ref is not None:
        found["credential"] = {"aki": ref.aki, "serial": f"{ref.serial:x}"}
    return found


def read_login(stored: Mapping[str, Any]) -> AccessRequest:
    """The inverse; fields of other releases are ignored."""
    values = {name: value for name, value in stored.items() if name in _FIELDS}
    if ref := values.pop("credential", None):
        values["credential"] = CredentialRef(ref["aki"], int(ref["serial"], 16))
    return AccessRequest(**values)


def session_of(decision: Decision, began: int, at: int) -> Session:
    """The session that an accept begins, times in microseconds. Its id follows from station, agent and beginning."""
    request = decision.request
    key = station_key(request.calling_station, request.nas_port)
    return Session(
        id=str(uuid.uuid5(_IDS, f"{request.nas_address} {key} {decision.agent_id} {began}")),
        state=ASSUMED, nas=request.nas, nas_address=request.nas_address, mac_key=key,
        acct_session=request.session, agent_id=decision.agent_id, octets_in=0, octets_out=0,
        began_at=from_micros(began), **_shown(decision, at),
    )  # fmt: skip


def accept(tx: Tx, decision: Decision, began: int, at: int) -> Session:
    """An Access-Accept was sent: the station's session at this NAS is this one, whatever was there before.

    It was sent `at`, and begins a session of the time `began` where it does not go on with one that is there.
    """
    request = decision.request
    key = station_key(request.calling_station, request.nas_port)
    known = sessions.live_at(tx, request.nas_address, key)
    same = next((one for one in known if _goes_on(one, decision)), None)
    for other in known:
        if other is not same:
            end(tx, other, "superseded")
    if same is not None:
        name = request.session or same.acct_session
        session = replace(same, acct_session=name, **_shown(decision, at))
        sessions.save(tx, session)
        waiting = sessions.waiting_for(tx, session.id)
        if waiting is not None and (waiting.want != "end" or waiting.why != "administrator"):
            sessions.save_change(tx, settled(waiting, "logged in anew"))
        return session
    session = session_of(decision, began, at)
    sessions.add(tx, session)
    return session


def _shown(decision: Decision, at: int) -> dict[str, Any]:
    """What every accept says anew."""
    request = decision.request
    return {
        "port": request.nas_port,
        "mac": request.calling_station,
        "department": decision.department,
        "owner_id": decision.owner_id,
        "serial": f"{request.credential.serial:x}" if request.credential else "",
        "txn": decision.txn,
        "verdict": decision.verdict,
        "vlan": "" if decision.vlan is None else str(decision.vlan),
        "granted": granted(decision),
        "request": write_login(request),
        "policy_revision": decision.policy_revision,
        "updated_at": from_micros(at),
    }


def _goes_on(session: Session, decision: Decision) -> bool:
    """Whether an accept is the re-authentication of a session: the same agent, and no other name for it by the NAS."""
    name = decision.request.session
    return session.agent_id == decision.agent_id and (not name or session.acct_session in ("", name))


def account(tx: Tx, record: AccountingRecord) -> None:
    """Take an accounting message in; a repeated one changes nothing more."""
    if record.status in ("on", "off"):
        cause = "nas-reboot" if record.status == "on" else "nas-request"
        for session in sessions.live_of_nas(tx, record.nas_address):
            if not record.nas or session.nas in ("", record.nas):
                end(tx, session, cause)
        return
    named = sessions.by_acct(tx, record.nas_address, record.session) if record.session else None
    if named is not None and named.mac_key != station_key(record.calling_station, record.nas_port):
        named = None if record.calling_station else named  # a NAS that begins to count anew after a restart
    if named is not None and not named.is_live:
        if record.status == "stop":  # behind our own Disconnect: the last word on what was transferred
            sessions.save(tx, _counted(tx, named, record, named.state))
        return
    if named is None:
        named = _unnamed(tx, record)
    if record.status == "stop":
        if named is not None:
            end(tx, _counted(tx, named, record, named.state), record.cause or "stopped")
        return
    if named is None:
        sessions.add(tx, _stranger(tx, record))
        return
    sessions.save(tx, _counted(tx, named, record, OPEN))


def _unnamed(tx: Tx, record: AccountingRecord) -> Session | None:
    """The live session that a message without a known Acct-Session-Id is about.

    A session that the NAS calls otherwise is over, its Stop got lost: what is known of it goes on in a new one.
    """
    known = sessions.live_at(tx, record.nas_address, station_key(record.calling_station, record.nas_port))
    bound = next((one for one in known if one.txn and one.txn in record.classes), None)
    found = bound or next(iter(known), None)
    if found is None or not record.session or found.acct_session in ("", record.session):
        return found
    if record.status == "stop":
        return None  # the late Stop of an older session
    end(tx, found, "lost-stop")
    if bound is None and record.classes:
        return None
    session = replace(
        found, id=str(uuid.uuid4()), acct_session=record.session, began_at=tx.now, octets_in=0, octets_out=0
    )
    sessions.add(tx, session)
    return session


def _stranger(tx: Tx, record: AccountingRecord) -> Session:
    """A session of which no decision of ours is known."""
    request = AccessRequest(
        nas=record.nas, nas_address=record.nas_address, nas_port=record.nas_port, session=record.session,
        calling_station=record.calling_station, user_name=record.user_name, nas_identifier=record.nas_identifier,
    )  # fmt: skip
    return Session(
        id=str(uuid.uuid4()), state=OPEN, nas=record.nas, nas_address=record.nas_address, port=record.nas_port,
        mac=record.calling_station, mac_key=station_key(record.calling_station, record.nas_port),
        acct_session=record.session, agent_id="", owner_id="", department="", serial="", txn="", verdict="unknown",
        vlan="", granted="", request=write_login(request), policy_revision=0, octets_in=record.octets_in,
        octets_out=record.octets_out, began_at=tx.now, updated_at=tx.now,
    )  # fmt: skip


def _counted(tx: Tx, session: Session, record: AccountingRecord, state: str) -> Session:
    """The session with what the record counts; counters never go back, so that a late Interim does no harm."""
    return replace(
        session,
        state=state,
        acct_session=session.acct_session or record.session,
        port=record.nas_port or session.port,
        octets_in=max(session.octets_in, record.octets_in),
        octets_out=max(session.octets_out, record.octets_out),
        updated_at=tx.now,
    )


def end(tx: Tx, session: Session, cause: str) -> None:
    """The session is over; what it still waits for is settled with it."""
    sessions.save(tx, replace(session, state=ENDED, ended_at=tx.now, updated_at=tx.now, cause=cause))
    waiting = sessions.waiting_for(tx, session.id)
    if waiting is not None:
        sessions.save_change(tx, settled(waiting, f"session ended: {cause}"))


def settled(change: sessions.Change, result: str) -> sessions.Change:
    """The change is done, one way or another."""
    return replace(change, state=sessions.DONE, result=result[:200])


def station_key(mac: str, port: str) -> str:
    """What tells stations of a NAS apart."""
    return mac_key(mac) if mac else f"port {port}"
