"""What goes into a decision and what comes out, as values: credential, owner, facts; steps and the Decision itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, NamedTuple

from radius.reasons import REASONS, STAGES, Stage, next_command
from radius.request import AccessRequest, clean_text
from radius.rules import Asked

Verdict = Literal["accept", "guest", "reject"]
Outcome = Literal["pass", "fail", "not-reached"]


class Credential(NamedTuple):
    """What the store says about the certificate that the request names.

    `kind` is `dual`, `single`, `ldevid` or another profile; `issuer_role` the CA that issued it; `state` is `issued`,
    `pending` or `revoked`; `agent_id` the identifier in it, of a proxy for an `ldevid`; `model` the issuance model;
    `txn` the transaction that issued it; `tier` that of the evidence it was issued for.
    """

    kind: str
    agent_id: str
    owner_id: str | None
    serial: int
    issuer_role: str
    state: str
    not_before: datetime
    not_after: datetime
    model: str = ""
    txn: str = ""
    tier: str = ""


@dataclass(frozen=True, slots=True)
class OwnerFact:
    """What the directory says about an owner now: `state` is `active`, `suspended` or `revoked`."""

    identifier: str
    state: str
    departments: tuple[str, ...] = ()
    kind: str = "person"


class Facts(NamedTuple):
    """Everything else a decision rests on; `now` and the credential's times are aware, ages are in seconds.

    `issuer_role` is that of the CA whose key the login names, empty for a key that is none of ours. `agent_class` was
    given to the agent by an administrator, `site` to the NAS.
    """

    now: datetime
    owner: OwnerFact | None = None
    agent_state: str = "registered"
    issuer_role: str = ""
    snapshot_age_seconds: float = 0.0
    stale_after_seconds: float = 30.0
    agent_class: str = ""
    site: str = ""
    generation: int = 0
    """Which facts these are: another number after each change that a decision may feel."""


class Step(NamedTuple):
    """One stage of a decision: what came out, and the facts it rests on in one line."""

    stage: Stage
    outcome: Outcome
    evidence: str


class Decision(NamedTuple):
    """The answer to a login with its reason chain; log, reply message, CLI and API all print this object.

    `vlan` is a number, or the name that the site's switches know; None exactly when `verdict` is `reject`. `rule` is
    the policy rule's name or empty. `steps` holds the four stages in order. `hint` is the command an administrator
    types next. `note` is the policy's own reason for a reject. `asked` is what the rules were asked with, None if they
    were not. A named tuple: one is made per login.
    """

    verdict: Verdict
    vlan: int | str | None
    vlan_name: str
    reason_code: str
    rule: str
    steps: tuple[Step, Step, Step, Step]
    hint: str
    policy_revision: int
    request: AccessRequest
    agent_id: str = ""
    owner_id: str = ""
    department: str = ""
    txn: str = ""
    role: str = ""
    filter_id: str = ""
    session_timeout: int | None = None
    note: str = ""
    asked: Asked | None = None
    generation: int = 0
    """That of the facts it rests on, 0 where nobody counted; a decision that lets nobody in has none."""

    @property
    def reason(self) -> str:
        """The catalogue's sentence for the reason code."""
        return REASONS[self.reason_code].meaning


_NOT_REACHED: Final[dict[Stage, Step]] = {stage: Step(stage, "not-reached", "") for stage in STAGES}


def refuse(request: AccessRequest, code: str, detail: str = "", *, revision: int = 0) -> Decision:
    """The reject for a login that failed before the credential could be looked up (a `tls` reason code)."""
    return refusal(request, [], code, detail or REASONS[code].meaning, revision)


def refusal(
    request: AccessRequest,
    passed: list[Step],
    code: str,
    evidence: str,
    revision: int,
    credential: Credential | None = None,
    owner: OwnerFact | None = None,
    *,
    rule: str = "",
    note: str = "",
    asked: Asked | None = None,
) -> Decision:
    """The reject at the stage behind those that passed."""
    at = len(passed)
    steps = [*passed, Step(STAGES[at], "fail", evidence), *(_NOT_REACHED[stage] for stage in STAGES[at + 1 :])]
    agent_id, owner_id, txn = names_of(credential)
    tls, held, owned, ruled = steps
    return Decision(
        "reject", None, "", code, rule, (tls, held, owned, ruled),
        hint(code, request, agent_id, owner_id), revision, request, agent_id, owner_id, departments_of(owner), txn,
        note=note, asked=asked,
    )  # fmt: skip


def names_of(credential: Credential | None) -> tuple[str, str, str]:
    """(agent, owner, transaction) of a credential, empty where there is none."""
    return ("", "", "") if credential is None else (credential.agent_id, credential.owner_id or "", credential.txn)


def hint(code: str, request: AccessRequest, agent_id: str, owner_id: str) -> str:
    """The next command for this login."""
    serial = "" if request.credential is None else f"{request.credential.serial:x}"
    return next_command(code, agent=agent_id, owner=owner_id, serial=serial, nas=request.nas)


def departments_of(owner: OwnerFact | None) -> str:
    """An owner's departments as one line for the log."""
    if owner is None or not owner.departments:
        return ""
    return clean_text(owner.departments[0] if len(owner.departments) == 1 else ", ".join(owner.departments))
