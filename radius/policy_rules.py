"""One [[rule]] of a policy text -> Rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from radius import policy_values as values
from radius.errors import PolicyValueInvalid, RuleDuplicate
from radius.policy_values import Table
from radius.rules import CREDENTIALS, DAYS, MODELS, OWNER_KINDS, TIERS, Rule, Window, canonical_department

_V1: Final = frozenset({"name", "department", "owner_kind", "model", "vlan"})
KEYS: Final = _V1 | {
    "credential", "agent_class", "tier", "nas", "port", "ssid", "site", "time", "role", "filter_id",
    "session_timeout", "reject",
}  # fmt: skip
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])\Z")
_ZONE = re.compile(r"[A-Za-z][A-Za-z0-9+_-]{0,31}(?:/[A-Za-z0-9][A-Za-z0-9+_-]{0,31}){0,2}\Z")


def read_rule(table: Table, vlans: Mapping[str, int | str], order: int, version: int) -> Rule:
    """The rule in a table; raises what radius.policy.read_policy names."""
    where = f"rule[{order + 1}]"
    values.check_keys(table, _V1 if version == 1 else KEYS, where)
    name = values.name(values.text(table.get("name"), f"{where}.name"), f"{where}.name")
    departments: tuple[str, ...] = ()
    if version == 1 or "department" in table:
        departments = values.texts(table.get("department"), f"{where}.department")
    if len({canonical_department(one) for one in departments}) != len(departments):
        raise RuleDuplicate(f"{where}.department names one department twice", where=f"{where}.department")
    vlan, reject = _outcome(table, where, version)
    return Rule(
        name=name,
        order=order,
        vlan=vlan,
        vlan_id=values.vlan(vlans, vlan, f"{where}.vlan") if vlan else 0,
        credentials=values.choices(table.get("credential"), CREDENTIALS, f"{where}.credential") or ("dual",),
        departments=departments,
        owner_kinds=values.choices(table.get("owner_kind"), OWNER_KINDS, f"{where}.owner_kind"),
        agent_classes=values.distinct(table.get("agent_class"), f"{where}.agent_class"),
        tiers=values.choices(table.get("tier"), TIERS, f"{where}.tier"),
        models=values.choices(table.get("model"), MODELS, f"{where}.model"),
        nas=values.patterns(table.get("nas"), f"{where}.nas"),
        ports=values.patterns(table.get("port"), f"{where}.port"),
        ssids=values.patterns(table.get("ssid"), f"{where}.ssid"),
        sites=_sites(table.get("site"), f"{where}.site"),
        window=_window(table.get("time"), f"{where}.time"),
        role=values.label(table.get("role"), f"{where}.role"),
        filter_id=values.label(table.get("filter_id"), f"{where}.filter_id"),
        session_timeout=values.seconds(table.get("session_timeout"), f"{where}.session_timeout"),
        reject=reject,
    )


def _outcome(table: Table, where: str, version: int) -> tuple[str, str]:
    """(VLAN name, text of a reject): exactly one of them."""
    if "reject" not in table:
        if version > 1 and "vlan" not in table:
            raise PolicyValueInvalid(f"{where} needs a vlan, or a reject with its reason", where=where)
        return values.text(table.get("vlan"), f"{where}.vlan"), ""
    for other in ("vlan", "role", "filter_id", "session_timeout"):
        if other in table:
            raise PolicyValueInvalid(f"{where}.{other}: a rule that rejects gives nothing", where=f"{where}.{other}")
    return "", values.text(table["reject"], f"{where}.reject")


def _sites(value: object, where: str) -> tuple[str, ...]:
    return tuple(values.name(one, where) for one in values.distinct(value, where))


def _window(value: object, where: str) -> Window | None:
    if value is None:
        return None
    table = values.table(value, where)
    values.check_keys(table, {"days", "from", "to", "zone"}, where)
    days = values.choices(table.get("days"), DAYS, f"{where}.days") or DAYS
    start = _minute(table.get("from", "00:00"), f"{where}.from")
    end = _minute(table.get("to", "24:00"), f"{where}.to", is_end=True)
    if start == end:
        raise PolicyValueInvalid(f"{where} is empty: from and to are the same", where=where)
    return Window(_zone(table.get("zone"), f"{where}.zone"), frozenset(DAYS.index(day) for day in days), start, end)


def _minute(value: object, where: str, *, is_end: bool = False) -> int:
    if is_end and value == "24:00":
        return 1440
    found = _CLOCK.match(value) if isinstance(value, str) else None
    if found is None:
        raise PolicyValueInvalid(f'{where} must be a time of day such as "07:30"', where=where)
    return int(found[1]) * 60 + int(found[2])


def _zone(value: object, where: str) -> ZoneInfo:
    name = values.text(value, where)
    try:
        if _ZONE.match(name):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as cause:
        raise PolicyValueInvalid(f"{where}: this machine has no time zone {name!r}", where=where) from cause
    raise PolicyValueInvalid(f'{where} must be an IANA time zone such as "Europe/Berlin"', where=where)
