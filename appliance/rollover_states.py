"""How a CA gives way to its successor, as one table, and what the CAs are for a given set of rollovers.

Theory (RFC 4210, section 4.4; spec rows E-100 to E-103). A rollover is a row in the store. Root and issuing CAs go the
same way:

- PREPARED: the new key and its certificates exist, nobody outside sees them.
- PUBLISHED: whoever trusts the old trusts the new as well: cacerts, trust files, CRL and OCSP have it. Nothing is
  signed with it yet, so everything can be taken back.
- SIGNING_WITH_NEW: the new one signs, our own servers have changed over; what the old one signed is still accepted.
  There is no way back: certificates are out whose issuer would not be known.
- OLD_RETIRED: the old one is gone from every trust file.

For an issuing CA the change is of a key and a name under the same root. For the root it is a new key under the same
name (so that the two links are self-issued and do not count against the path length), two links, and the certificates
of the same issuing keys once more under the new root. Links are what lets a client with one root only accept a chain
to the other: OldWithNew while the old one signs, NewWithOld after.

A client that saw cacerts while a new root was published has that root alone (RFC 7030, section 4.1.3). Therefore our
servers send OldWithNew for as long as the old root stays, even when the rollover was taken back.

The certificates that `init` made lie in files and never change; what came later is in the rows. So what the CAs are is
a function of the files and the rows, each step is one conditional statement, and a kill leaves the one state or the
other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar

from cryptography import x509

from appliance.errors import ApplianceError
from appliance.hierarchy import ROLES, ROOT, Role
from appliance.store.rollovers import RolloverRow

RENEWAL = "renewal"
"""Rows that only carry new certificates of the same issuing keys; OLD_RETIRED from the start."""


class RolloverState(Enum):
    """Where the change of a CA stands."""

    PREPARED = "prepared"
    PUBLISHED = "published"
    SIGNING_WITH_NEW = "signing-with-new"
    OLD_RETIRED = "old-retired"
    TAKEN_BACK = "taken-back"


class RolloverEvent(Enum):
    """What an administrator asks."""

    ADVANCE = "advance"
    BACK = "back"


ROLLOVER: Mapping[tuple[RolloverState, RolloverEvent], RolloverState] = {
    (RolloverState.PREPARED, RolloverEvent.ADVANCE): RolloverState.PUBLISHED,
    (RolloverState.PUBLISHED, RolloverEvent.ADVANCE): RolloverState.SIGNING_WITH_NEW,
    (RolloverState.SIGNING_WITH_NEW, RolloverEvent.ADVANCE): RolloverState.OLD_RETIRED,
    (RolloverState.PUBLISHED, RolloverEvent.BACK): RolloverState.PREPARED,
    (RolloverState.PREPARED, RolloverEvent.BACK): RolloverState.TAKEN_BACK,
}

OPEN = frozenset({RolloverState.PREPARED, RolloverState.PUBLISHED, RolloverState.SIGNING_WITH_NEW})


class RolloverOutOfOrder(ApplianceError):
    """The rollover does not go this way from where it is, or another one has to be finished before."""

    reason: ClassVar[str] = "rollover-out-of-order"


def step(state: RolloverState, event: RolloverEvent) -> RolloverState:
    """The next state; raises RolloverOutOfOrder where the table has none."""
    try:
        return ROLLOVER[state, event]
    except KeyError as cause:
        raise RolloverOutOfOrder(
            f"a rollover that is {state.value} has no way {event.value}", state=state.value
        ) from cause


@dataclass(frozen=True, slots=True)
class Place:
    """A generation of an issuing CA: the label of its key, its certificate."""

    role: Role
    label: str
    certificate: x509.Certificate


@dataclass(frozen=True, slots=True)
class Places:
    """The CAs without their keys; the members are those of `appliance.ca.Authorities`."""

    root: x509.Certificate
    issuing: Mapping[Role, Place]
    root_label: str = ROOT
    beside: tuple[Place, ...] = ()
    certificates: tuple[x509.Certificate, ...] = ()
    links: tuple[x509.Certificate, ...] = ()


@dataclass(frozen=True, slots=True)
class Made:
    """What a rollover made, out of its row: `issuing` by the label of the key."""

    root: x509.Certificate | None = None
    old_with_new: x509.Certificate | None = None
    new_with_old: x509.Certificate | None = None
    issuing: Mapping[str, x509.Certificate] = field(default_factory=dict)


def read_made(row: RolloverRow) -> Made:
    """The certificates of a row; empty while the root has not signed."""
    found = {name: x509.load_pem_x509_certificate(pem.encode()) for name, pem in row.made.items()}
    root, old_with_new, new_with_old = (found.pop(name, None) for name in (ROOT, "old-with-new", "new-with-old"))
    return Made(root, old_with_new, new_with_old, found)


def places(root: x509.Certificate, issuing: Mapping[Role, x509.Certificate], rows: Iterable[RolloverRow]) -> Places:
    """The CAs that the files' certificates and these rollovers, oldest first, come to."""
    now = Places(root, {role: Place(role, role, issuing[role]) for role in ROLES})
    for row in rows:
        made, state = read_made(row), RolloverState(row.state)
        if row.ca == ROOT:
            now = _with_root(now, row, made, state)
        elif row.ca == RENEWAL:
            now = replace(now, issuing=_resigned(now.issuing, made))
        else:
            now = _with_role(now, row, made, state)
    return now


def _with_role(now: Places, row: RolloverRow, made: Made, state: RolloverState) -> Places:
    if row.label not in made.issuing or state in (RolloverState.PREPARED, RolloverState.TAKEN_BACK):
        return now
    role = next(role for role in ROLES if role == row.ca)
    new, old = Place(role, row.label, made.issuing[row.label]), now.issuing[role]
    if state is RolloverState.PUBLISHED:
        return replace(now, beside=(*now.beside, new))
    beside = (*now.beside, old) if state is RolloverState.SIGNING_WITH_NEW else now.beside
    return replace(now, issuing={**now.issuing, role: new}, beside=beside)


def _with_root(now: Places, row: RolloverRow, made: Made, state: RolloverState) -> Places:
    if made.root is None or made.old_with_new is None or made.new_with_old is None:
        return now
    other = (made.old_with_new, made.new_with_old)
    if state in (RolloverState.PREPARED, RolloverState.TAKEN_BACK):
        return replace(now, links=(made.old_with_new,)) if row.published_at is not None else now
    if state is RolloverState.PUBLISHED:
        certificates = (*now.certificates, made.root, *other)
        return replace(now, certificates=certificates, links=(made.old_with_new,))
    issuing = _resigned(now.issuing, made)
    changed = replace(now, root=made.root, root_label=row.label, issuing=issuing, links=())
    if state is RolloverState.OLD_RETIRED:
        return changed
    under_old = tuple(one.certificate for one in now.issuing.values())
    return replace(changed, certificates=(*now.certificates, now.root, *other, *under_old), links=(made.new_with_old,))


def _resigned(issuing: Mapping[Role, Place], made: Made) -> Mapping[Role, Place]:
    """The same keys with the certificates that were made for them."""
    return {
        role: replace(one, certificate=made.issuing.get(one.label, one.certificate)) for role, one in issuing.items()
    }
