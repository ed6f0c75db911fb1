"""Policy: which login gets which VLAN, as one versioned TOML text.

    version = 2
    [vlans]                       # a name for each VLAN: its number, or the name that the switches know it by
    research = 20
    onboarding = "onboard-net"
    infrastructure = 5
    guest = 99
    [sites.north.vlans]           # optional: where a site's switches use another number or name
    research = 120
    [defaults]                    # optional; these are the defaults
    unmapped = "guest"            # owner without a department, or with one that no rule takes: guest | reject
    stale = "reject"              # decision snapshot too old: reject | guest
    guest_vlan = "guest"
    [mac_bypass]                  # optional; without it there is no MAC authentication bypass
    vlan = "onboarding"
    [[rule]]                      # the first rule that matches counts
    name = "research"
    department = ["R&D", "Research"]
    time = { days = ["mon", "fri"], from = "07:00", to = "20:00", zone = "Europe/Berlin" }
    vlan = "research"
    session_timeout = 28800
    [[rule]]
    name = "proxies"
    credential = "proxy"
    vlan = "infrastructure"

Conditions and outcomes are those of radius.rules.Rule. Everything that is not known is refused with its place and line.
Version 1 had departments (needed), owner kinds, models and a VLAN; it is still read. Rules cannot widen what
radius.decide demands before it asks the policy. Time zones are those of the machine, or of the package tzdata.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from types import MappingProxyType
from typing import Final, Literal, cast

from radius import policy_values as values
from radius.errors import PolicyError, PolicyMalformed, PolicyVersionUnknown, RuleDuplicate, RuleUnreachable
from radius.policy_rules import read_rule
from radius.reach import find_unreachable
from radius.request import clean_text
from radius.rules import MODELS, OWNER_KINDS, Asked, Rule, canonical_department

__all__ = ["MODELS", "OWNER_KINDS", "VERSIONS", "MacBypass", "OnMiss", "Policy", "Rule", "canonical_department",
           "load_policy", "read_policy"]  # fmt: skip

VERSIONS: Final = (1, 2)
MAX_TEXT_BYTES: Final = 1_048_576
MAX_RULES: Final = 4096

OnMiss = Literal["guest", "reject"]
Vlan = int | str
_Index = tuple[Mapping[str, tuple[Rule, ...]], tuple[Rule, ...]]
_HEADER: Final = re.compile(r"\s*\[{1,2}\s*([^\[\]#]+?)\s*\]{1,2}\s*(?:#.*)?\Z")


@dataclass(frozen=True, slots=True)
class MacBypass:
    """MAC authentication bypass: the one VLAN it leads to, and when the port asks again."""

    vlan: str
    session_timeout: int | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy. `revision` is its number in the store (0 = not published), `sha256` that of its text, hex."""

    revision: int
    version: int
    vlans: Mapping[str, Vlan]
    rules: tuple[Rule, ...]
    unmapped: OnMiss
    stale: OnMiss
    guest_vlan: str
    sha256: str
    sites: Mapping[str, Mapping[str, Vlan]] = field(default_factory=dict)
    mac_bypass: MacBypass | None = None
    unchecked: tuple[str, ...] = ()
    looks_at_ssid: bool = False
    index: Mapping[str, _Index] = field(default_factory=dict, repr=False, compare=False)
    """Rules by kind of credential: those with a department by department, and those without."""

    @property
    def guest_vlan_id(self) -> Vlan:
        """Number or name of the guest VLAN where no site has its own."""
        return self.vlans[self.guest_vlan]

    def vlan_at(self, site: str, name: str) -> Vlan:
        """Number or name of a VLAN at a site."""
        if site and (own := self.sites.get(site)) is not None and (found := own.get(name)) is not None:
            return found
        return self.vlans[name]

    def takes(self, credential: str) -> bool:
        """Whether any rule takes this kind of credential (dual, single, proxy)."""
        return credential in self.index

    def match(self, asked: Asked, now: datetime) -> Rule | None:
        """The first rule in the order of the text that takes this login, or None."""
        entry = self.index.get(asked.credential)
        if entry is None:
            return None
        by_department, free = entry
        found: Rule | None = None
        for department in asked.departments:
            for rule in by_department.get(canonical_department(department), ()):
                if found is not None and rule.order > found.order:
                    break
                if rule.takes(asked, now):
                    found = rule
                    break
        for rule in free:
            if found is not None and rule.order > found.order:
                break
            if rule.takes(asked, now):
                return rule
        return found


def read_policy(text: str, *, revision: int = 0) -> Policy:
    """The policy in a TOML text, as one that is about to be published is read.

    Raises PolicyMalformed, PolicyVersionUnknown, PolicyKeyUnknown, PolicyValueInvalid, VlanOutOfRange, VlanUnknown,
    RuleDuplicate or RuleUnreachable, each naming the place (`where`) and, where it can be told, the `line`.
    """
    return _located(text, revision, check_reach=True)


def load_policy(text: str, *, revision: int = 0) -> Policy:
    """The policy in a text that was published: as read_policy(), without the search for unreachable rules.

    That search takes long for a large policy, and a release that searches better must still load what stands.
    """
    return _located(text, revision, check_reach=False)


def _located(text: str, revision: int, *, check_reach: bool) -> Policy:
    try:
        return _read(text, revision, check_reach=check_reach)
    except PolicyError as refusal:
        line = _line_of(text, str(refusal.fields.get("where", "")))
        if not line:
            raise
        raise type(refusal)(f"line {line}: {refusal.detail}", line=line, **refusal.fields) from refusal


def _read(text: str, revision: int, *, check_reach: bool) -> Policy:
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > MAX_TEXT_BYTES:
        raise PolicyMalformed(f"the policy is larger than {MAX_TEXT_BYTES} bytes", where="text")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as cause:  # tomllib passes int()'s ValueError and deep nesting through
        raise PolicyMalformed(f"not TOML: {cause}", where="text") from cause
    version = document.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise PolicyVersionUnknown(f"version must be {' or '.join(map(str, VERSIONS))}", where="version")
    known = {"version", "vlans", "defaults", "rule"} | ({"sites", "mac_bypass"} if version > 1 else set())
    values.check_keys(document, known, "")
    vlans = _vlans(document.get("vlans", {}), "vlans", names=version > 1)
    defaults = values.table(document.get("defaults", {}), "defaults")
    values.check_keys(defaults, {"unmapped", "stale", "guest_vlan"}, "defaults")
    guest_vlan = values.text(defaults.get("guest_vlan", "guest"), "defaults.guest_vlan")
    values.vlan(vlans, guest_vlan, "defaults.guest_vlan")
    sites = _sites(document.get("sites", {}), vlans)
    bypass = _mac_bypass(document.get("mac_bypass"), vlans)
    rules = _rules(document.get("rule", []), vlans, version)
    unchecked: tuple[str, ...] = ()
    if check_reach:
        reach = find_unreachable(rules)
        unchecked = reach.unchecked
        if reach.unreachable is not None:
            rule, before = reach.unreachable.rule, list(reach.unreachable.shadowed_by)
            where = f"rule[{rule.order + 1}]"
            why = f"everything it names is taken by {', '.join(before)}" if before else (
                "only a dual-identity credential names an owner, so no other has a department or an owner kind"
            )  # fmt: skip
            raise RuleUnreachable(f"{where} ({rule.name}) can never match: {why}", where=where, shadowed_by=before)
    return Policy(
        revision=revision,
        version=version,
        vlans=MappingProxyType(vlans),
        rules=rules,
        unmapped=_on_miss(defaults.get("unmapped", "guest"), "defaults.unmapped"),
        stale=_on_miss(defaults.get("stale", "reject"), "defaults.stale"),
        guest_vlan=guest_vlan,
        sha256=sha256(encoded).hexdigest(),
        sites=MappingProxyType(sites),
        mac_bypass=bypass,
        unchecked=unchecked,
        looks_at_ssid=any(rule.ssids for rule in rules),
        index=MappingProxyType(_index(rules)),
    )


def _index(rules: tuple[Rule, ...]) -> dict[str, _Index]:
    index: dict[str, tuple[dict[str, list[Rule]], list[Rule]]] = {}
    for rule in rules:
        for credential in rule.credentials:
            by_department, free = index.setdefault(credential, ({}, []))
            if not rule.departments:
                free.append(rule)
            for department in rule.departments:
                by_department.setdefault(canonical_department(department), []).append(rule)
    return {
        credential: ({name: tuple(found) for name, found in by_department.items()}, tuple(free))
        for credential, (by_department, free) in index.items()
    }


def _vlans(found: object, where: str, *, names: bool) -> dict[str, Vlan]:
    vlans: dict[str, Vlan] = {}
    for name, value in values.table(found, where).items():
        place = f"{where}.{clean_text(name, 64)}"
        values.name(name, place)
        vlans[name] = values.vlan_value(value, place, names=names)
    return vlans


def _sites(found: object, vlans: Mapping[str, Vlan]) -> dict[str, Mapping[str, Vlan]]:
    sites: dict[str, Mapping[str, Vlan]] = {}
    for name, entry in values.table(found, "sites").items():
        where = f"sites.{clean_text(name, 64)}"
        values.name(name, where)
        table = values.table(entry, where)
        values.check_keys(table, {"vlans"}, where)
        own = _vlans(table.get("vlans", {}), f"{where}.vlans", names=True)
        for vlan in own:
            values.vlan(vlans, vlan, f"{where}.vlans.{vlan}")
        sites[name] = MappingProxyType(own)
    return sites


def _mac_bypass(found: object, vlans: Mapping[str, Vlan]) -> MacBypass | None:
    if found is None:
        return None
    table = values.table(found, "mac_bypass")
    values.check_keys(table, {"vlan", "session_timeout"}, "mac_bypass")
    vlan = values.text(table.get("vlan"), "mac_bypass.vlan")
    values.vlan(vlans, vlan, "mac_bypass.vlan")
    return MacBypass(vlan, values.seconds(table.get("session_timeout"), "mac_bypass.session_timeout"))


def _rules(found: object, vlans: Mapping[str, Vlan], version: int) -> tuple[Rule, ...]:
    if not isinstance(found, list):
        raise PolicyMalformed("rules are written as [[rule]] tables", where="rule")
    if len(found) > MAX_RULES:
        raise PolicyMalformed(f"more than {MAX_RULES} rules", where="rule")
    rules: list[Rule] = []
    names: dict[str, int] = {}
    for order, entry in enumerate(found):
        where = f"rule[{order + 1}]"
        rule = read_rule(values.table(entry, where), vlans, order, version)
        if rule.name in names:
            raise RuleDuplicate(
                f"{where}.name: rule[{names[rule.name]}] is {rule.name!r} as well", where=f"{where}.name"
            )
        names[rule.name] = order + 1
        rules.append(rule)
    return tuple(rules)


def _on_miss(value: object, where: str) -> OnMiss:
    return cast(OnMiss, values.one_of(value, ("guest", "reject"), where))


def _line_of(text: str, where: str) -> int:
    """The line on which a place such as `rule[2].vlan` stands, 0 if it cannot be told; a guide for the eye only."""
    if where in ("", "text"):
        return 0
    head, _, key = where.rpartition(".")
    for table, name in ((head, key), (where, "")):  # a key in its table, or the table itself
        if found := _find(text, table, re.sub(r"\[\d+\]\Z", "", name)):
            return found
    return _find(text, re.sub(r"\.[^.]*\Z", "", where), "")


def _find(text: str, table: str, key: str) -> int:
    wanted, _, ordinal = table.partition("[")
    left, inside = int(ordinal.rstrip("]") or 1) if ordinal.rstrip("]").isdigit() or not ordinal else 1, not table
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header is not None:
            if inside:
                return 0
            if header[1].replace(" ", "").replace('"', "") == wanted:
                left -= 1
                inside = left == 0
                if inside and not key:
                    return number
        elif inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]", line):
            return number
    return 0
