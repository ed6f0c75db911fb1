"""Sessions of which an Access-Accept tells and nothing else yet: in memory, until somebody has to write one down.

An accept is a row of the decision log anyway. So the table of sessions gets it only when there is more to keep of it:
accounting, a change that is ordered, or too many others. One whose place another takes was never more than that row.
After a restart the log tells them again. An entry is a tuple of texts and numbers: tens of thousands of them are
nothing to the garbage collector.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from appliance.access import session_table
from radius import AccessRequest, CredentialRef, Decision, Step
from radius.reasons import STAGES
from radius.request import EAP_TLS

Key = tuple[str, str]
"""Address of the NAS, and the station there."""

MAX_ASSUMED = 20_000
_NOT_KEPT = tuple(Step(stage, "not-reached", "") for stage in STAGES)
_OWNER, _AGENT = 0, 1


class Accepted(NamedTuple):
    """An accept on its way into the table: microseconds of the session's beginning and of the accept itself.

    `is_outdated`: what the decision rests on has changed since.
    """

    decision: Decision
    began: int
    at: int
    is_outdated: bool = False


def key_of(request: AccessRequest) -> Key:
    """Where a login's session belongs."""
    return request.nas_address, session_table.station_key(request.calling_station, request.nas_port)


class Assumed:
    """By station, the one that was heard of least lately first."""

    def __init__(self) -> None:
        self._of: dict[Key, tuple[int, int, tuple[Any, ...]]] = {}

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, key: object) -> bool:
        return key in self._of

    def put(self, key: Key, decision: Decision, at: int) -> None:
        """Take an accept in: it goes on with the same agent's session there, or takes the place of another's."""
        packed = _pack(decision)
        began = at
        if (known := self._of.pop(key, None)) is not None:
            (_, agent, name), (_, same, before) = packed[:3], known[2][:3]
            if agent == same and (not name or before in ("", name)):
                began = known[0]
                packed = packed if name else (*packed[:2], before, *packed[3:])
        self._of[key] = (began, at, packed)

    def pop(self, key: Key) -> Accepted | None:
        """Take an entry out."""
        found = self._of.pop(key, None)
        return None if found is None else _read(found)

    def surplus(self) -> Key | None:
        """The oldest entry of too many."""
        return next(iter(self._of)) if len(self._of) > MAX_ASSUMED else None

    def forget(self, before: int) -> None:
        """Drop what was not heard of since then, microseconds."""
        for key in [key for key, found in self._of.items() if found[1] < before]:
            del self._of[key]

    def of_nas(self, address: str) -> list[Key]:
        """Where a NAS has some."""
        return [key for key in self._of if key[0] == address]

    def of_parties(self, owners: Iterable[str], agents: Iterable[str]) -> list[Key]:
        """Where any of these have some."""
        owned, named = frozenset(owners) - {""}, frozenset(agents) - {""}
        return [key for key, (_, _, packed) in self._of.items() if packed[_AGENT] in named or packed[_OWNER] in owned]

    def keys(self) -> list[Key]:
        """All stations."""
        return list(self._of)

    def get(self, key: Key) -> Accepted | None:
        """What is known of a station."""
        found = self._of.get(key)
        return None if found is None else _read(found)


def _read(found: tuple[int, int, tuple[Any, ...]]) -> Accepted:
    began, at, packed = found
    return Accepted(_unpack(packed), began, at)


def _pack(decision: Decision) -> tuple[Any, ...]:
    """Owner, agent, what the NAS calls the session, and all the rest but the reason chain, which the log has."""
    r = decision.request
    ref = r.credential
    return (
        decision.owner_id, decision.agent_id, r.session, decision.verdict, decision.vlan, decision.vlan_name,
        decision.reason_code, decision.rule, decision.policy_revision, decision.department, decision.txn,
        decision.role, decision.filter_id, decision.session_timeout,
        None if ref is None else ref.aki, None if ref is None else ref.serial,
        r.nas, r.nas_address, r.nas_port, r.calling_station, r.called_station, r.user_name, r.tls_version,
        r.owner_id_hint, r.san, r.method, r.transport, r.nas_identifier,
    )  # fmt: skip


def _unpack(packed: tuple[Any, ...]) -> Decision:
    (
        owner_id, agent_id, session, verdict, vlan, vlan_name, reason_code, rule, revision, department, txn, role,
        filter_id, session_timeout, aki, serial, nas, nas_address, nas_port, calling_station, called_station, user_name,
        tls_version, owner_id_hint, san, method, transport, nas_identifier,
    ) = packed  # fmt: skip
    request = AccessRequest(
        nas=nas, nas_address=nas_address, nas_port=nas_port, calling_station=calling_station,
        called_station=called_station, user_name=user_name, session=session, tls_version=tls_version,
        credential=None if aki is None else CredentialRef(aki, serial), owner_id_hint=owner_id_hint, san=san,
        method=method or EAP_TLS, transport=transport, nas_identifier=nas_identifier,
    )  # fmt: skip
    tls, held, owned, ruled = _NOT_KEPT
    return Decision(
        verdict, vlan, vlan_name, reason_code, rule, (tls, held, owned, ruled), "", revision, request,
        agent_id=agent_id, owner_id=owner_id, department=department, txn=txn, role=role, filter_id=filter_id,
        session_timeout=session_timeout,
    )  # fmt: skip
