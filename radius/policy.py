"""Policy: which department gets which VLAN, as one versioned TOML text.

    version = 1
    [vlans]
    research = 20
    guest = 99
    [defaults]                  # optional; these are the defaults
    unmapped = "guest"          # owner without a department, or with one that no rule names: guest | reject
    stale = "reject"            # decision snapshot too old: reject | guest
    guest_vlan = "guest"
    [[rule]]                    # the first rule that matches counts
    name = "research"
    department = ["R&D", "Research"]
    owner_kind = "person"       # optional: person | device | policy
    model = "agent-mediated"    # optional: agent-mediated | owner-mediated | server-mediated | standing
    vlan = "research"

Everything that is not in this picture is refused with its place. Rules cannot widen what radius.decide demands before
it asks the policy: an issued, unexpired dual-identity credential and an active owner.
"""

from __future__ import annotations

import difflib
import re
import tomllib
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from types import MappingProxyType
from typing import Final, Literal

from radius.errors import (
    PolicyKeyUnknown,
    PolicyMalformed,
    PolicyValueInvalid,
    PolicyVersionUnknown,
    RuleDuplicate,
    RuleUnreachable,
    VlanOutOfRange,
    VlanUnknown,
)
from radius.request import clean_text

VERSION: Final = 1
MAX_TEXT_BYTES: Final = 1_048_576
MAX_RULES: Final = 4096
OWNER_KINDS: Final = ("person", "device", "policy")
MODELS: Final = ("agent-mediated", "owner-mediated", "server-mediated", "standing")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}\Z")

Table = Mapping[str, object]
OnMiss = Literal["guest", "reject"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One line of the policy. `departments` are as written; an empty `owner_kinds` or `models` means any."""

    name: str
    departments: tuple[str, ...]
    owner_kinds: tuple[str, ...]
    models: tuple[str, ...]
    vlan: str
    vlan_id: int
    order: int

    def takes(self, owner_kind: str, model: str) -> bool:
        """Whether the rule's other conditions allow this owner kind and issuance model."""
        return (not self.owner_kinds or owner_kind in self.owner_kinds) and (not self.models or model in self.models)


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy. `revision` is its number in the store (0 = not published), `sha256` that of its text, hex."""

    revision: int
    vlans: Mapping[str, int]
    rules: tuple[Rule, ...]
    unmapped: OnMiss
    stale: OnMiss
    guest_vlan: str
    sha256: str
    by_department: Mapping[str, tuple[Rule, ...]]

    @property
    def guest_vlan_id(self) -> int:
        """The id of the guest VLAN."""
        return self.vlans[self.guest_vlan]

    def match(self, departments: Sequence[str], owner_kind: str, model: str) -> Rule | None:
        """The first rule in the order of the text for an owner with these departments, or None."""
        found: Rule | None = None
        for department in departments:
            for rule in self.by_department.get(canonical_department(department), ()):
                if rule.takes(owner_kind, model):
                    if found is None or rule.order < found.order:
                        found = rule
                    break
        return found


def canonical_department(text: str) -> str:
    """The form in which departments are compared: NFC, without case and without blanks around it.

    One rule for policy and directory. Look-alike letters of another script stay different, so they match no rule.
    """
    if text.isascii():
        return text.strip().lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).strip().casefold())


def read_policy(text: str, *, revision: int = 0) -> Policy:
    """The policy in a TOML text.

    Raises PolicyMalformed, PolicyVersionUnknown, PolicyKeyUnknown, PolicyValueInvalid, VlanOutOfRange, VlanUnknown,
    RuleDuplicate or RuleUnreachable, each naming the place.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > MAX_TEXT_BYTES:
        raise PolicyMalformed(f"the policy is larger than {MAX_TEXT_BYTES} bytes", where="text")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as cause:  # tomllib passes int()'s ValueError and deep nesting through
        raise PolicyMalformed(f"not TOML: {cause}", where="text") from cause
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise PolicyVersionUnknown(f"version must be {VERSION}", where="version")
    _check_keys(document, {"version", "vlans", "defaults", "rule"}, "")
    vlans = _vlans(document)
    defaults = _table(document.get("defaults", {}), "defaults")
    _check_keys(defaults, {"unmapped", "stale", "guest_vlan"}, "defaults")
    guest_vlan = _text(defaults.get("guest_vlan", "guest"), "defaults.guest_vlan")
    _vlan_id(vlans, guest_vlan, "defaults.guest_vlan")
    rules = _rules(document.get("rule", []), vlans)
    index: dict[str, list[Rule]] = {}
    for rule in rules:
        for department in rule.departments:
            index.setdefault(canonical_department(department), []).append(rule)
    return Policy(
        revision=revision,
        vlans=MappingProxyType(vlans),
        rules=rules,
        unmapped=_on_miss(defaults.get("unmapped", "guest"), "defaults.unmapped"),
        stale=_on_miss(defaults.get("stale", "reject"), "defaults.stale"),
        guest_vlan=guest_vlan,
        sha256=sha256(encoded).hexdigest(),
        by_department=MappingProxyType({name: tuple(found) for name, found in index.items()}),
    )


def _vlans(document: Table) -> dict[str, int]:
    vlans: dict[str, int] = {}
    for name, value in _table(document.get("vlans", {}), "vlans").items():
        where = f"vlans.{clean_text(name, 64)}"
        _name(name, where)
        if type(value) is not int:
            raise PolicyValueInvalid(f"{where} must be a number", where=where)
        if not 1 <= value <= 4094:
            raise VlanOutOfRange(f"{where} must be between 1 and 4094, not {value}", where=where)
        vlans[name] = value
    return vlans


def _rules(found: object, vlans: Mapping[str, int]) -> tuple[Rule, ...]:
    if not isinstance(found, list):
        raise PolicyMalformed("rules are written as [[rule]] tables", where="rule")
    if len(found) > MAX_RULES:
        raise PolicyMalformed(f"more than {MAX_RULES} rules", where="rule")
    rules: list[Rule] = []
    names: dict[str, int] = {}
    taken: dict[tuple[str, str, str], str] = {}  # what a login may look like -> the rule that takes it
    for order, entry in enumerate(found):
        rule = _rule(_table(entry, f"rule[{order + 1}]"), vlans, order)
        where = f"rule[{order + 1}]"
        if rule.name in names:
            raise RuleDuplicate(
                f"{where}.name: rule[{names[rule.name]}] is {rule.name!r} as well", where=f"{where}.name"
            )
        names[rule.name] = order + 1
        cases = list(
            product(
                [canonical_department(department) for department in rule.departments],
                rule.owner_kinds or OWNER_KINDS,
                rule.models or MODELS,
            )
        )
        fresh = [case for case in cases if case not in taken]
        if not fresh:
            before = sorted({taken[case] for case in cases})
            raise RuleUnreachable(
                f"{where} ({rule.name}) can never match: everything it names is taken by {', '.join(before)}",
                where=where,
                shadowed_by=before,
            )
        taken |= dict.fromkeys(fresh, rule.name)
        rules.append(rule)
    return tuple(rules)


def _rule(table: Table, vlans: Mapping[str, int], order: int) -> Rule:
    where = f"rule[{order + 1}]"
    _check_keys(table, {"name", "department", "owner_kind", "model", "vlan"}, where)
    name = _name(_text(table.get("name"), f"{where}.name"), f"{where}.name")
    departments = _texts(table.get("department"), f"{where}.department")
    canonical = [canonical_department(department) for department in departments]
    if len(set(canonical)) != len(canonical):
        raise RuleDuplicate(f"{where}.department names one department twice", where=f"{where}.department")
    vlan = _text(table.get("vlan"), f"{where}.vlan")
    return Rule(
        name=name,
        departments=departments,
        owner_kinds=_choices(table.get("owner_kind"), OWNER_KINDS, f"{where}.owner_kind"),
        models=_choices(table.get("model"), MODELS, f"{where}.model"),
        vlan=vlan,
        vlan_id=_vlan_id(vlans, vlan, f"{where}.vlan"),
        order=order,
    )


def _check_keys(table: Table, known: Collection[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            shown = clean_text(key, 64)
            place = f"{where}.{shown}" if where else shown
            hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(sorted(known))}"
            raise PolicyKeyUnknown(f"unknown key {place!r}{hint}", where=place, near=near[0] if near else "")


def _table(value: object, where: str) -> Table:
    if not isinstance(value, dict):
        raise PolicyMalformed(f"{where} must be a table", where=where)
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise PolicyValueInvalid(f"{where} must be a text", where=where)
    if len(value) > 128 or not value.isprintable():
        raise PolicyValueInvalid(f"{where} must be at most 128 printable characters", where=where)
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, list):
        if not value:
            raise PolicyValueInvalid(f"{where} must not be empty", where=where)
        return tuple(_text(one, f"{where}[{number}]") for number, one in enumerate(value, 1))
    return (_text(value, where),)


def _choices(value: object, allowed: Collection[str], where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    chosen = _texts(value, where)
    for one in chosen:
        if one not in allowed:
            raise PolicyValueInvalid(f"{where} must be one of {', '.join(allowed)}, not {one!r}", where=where)
    if len(set(chosen)) != len(chosen):
        raise RuleDuplicate(f"{where} names one value twice", where=where)
    return chosen


def _on_miss(value: object, where: str) -> OnMiss:
    if value == "guest":
        return "guest"
    if value == "reject":
        return "reject"
    raise PolicyValueInvalid(f'{where} must be "guest" or "reject"', where=where)


def _name(value: str, where: str) -> str:
    if not _NAME.match(value):
        raise PolicyValueInvalid(
            f"{where}: a name is 1 to 64 letters, digits, blanks, dots, hyphens or underscores", where=where
        )
    return value


def _vlan_id(vlans: Mapping[str, int], name: str, where: str) -> int:
    try:
        return vlans[name]
    except KeyError as cause:
        known = ", ".join(vlans) or "none"
        raise VlanUnknown(f"{where}: [vlans] has no {name!r} (known: {known})", where=where) from cause
