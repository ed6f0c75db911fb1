"""Rows of the decision log as lines for other programs: JSON, syslog (RFC 5424), CEF. Pure.

Every value may come from a stranger (an outer EAP identity, a certificate's name), so each format's escaping is exact
and nothing ever ends a line: a row is one line, always.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from appliance.version import version
from radius.reasons import REASONS

VENDOR: Final = "campus-appliance"
PRODUCT: Final = "decision-log"
_AUTHPRIV: Final = 10
_SEVERITY: Final = {"accept": 6, "guest": 5, "reject": 4}  # informational, notice, warning (RFC 5424, section 6.2.1)
_CEF_SEVERITY: Final = {"accept": 1, "guest": 3, "reject": 6}
_BOM: Final = "\ufeff"


_VERSION: Final = version()


class Line(NamedTuple):
    """A row as `appliance access log -o json` has it, its time, our host name, our private enterprise number."""

    row: Mapping[str, Any]
    time: datetime
    sender: str
    pen: int


def write_json(line: Line) -> str:
    """One JSON object (RFC 8259); not ASCII is escaped, so no reader can take a character for the end of a line."""
    return json.dumps(line.row, ensure_ascii=True, separators=(",", ":"))


def write_syslog(line: Line) -> str:
    """One message of RFC 5424, facility authpriv, with the row as structured data and the reason in words behind it."""
    data = " ".join(f'{name}="{_parameter(value)}"' for name, value in _fields(line.row) if value)
    return f"{_head(line)} [decision@{line.pen} {data}] {_BOM}{_plain(_message(line.row))}"


def _head(line: Line) -> str:
    """Everything before the structured data (RFC 5424, section 6.2)."""
    row = line.row
    priority = _AUTHPRIV * 8 + _SEVERITY.get(row["verdict"], 4)
    stamp = line.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return f"<{priority}>1 {stamp} {_header(line.sender, 255)} {VENDOR} - {_header(row['reason'], 32)}"


def write_cef_message(line: Line) -> str:
    """CEF behind the header of RFC 5424, without structured data: readers look for CEF: where the text begins."""
    return f"{_head(line)} - {write_cef(line)}"


def write_cef(line: Line) -> str:
    """One line of ArcSight's Common Event Format, version 0."""
    row = line.row
    severity = _CEF_SEVERITY.get(row["verdict"], 6)
    head = (VENDOR, PRODUCT, _VERSION, row["reason"], _meaning(row), str(severity))
    extension = {
        "rt": str(int(line.time.timestamp() * 1000)),
        "externalId": row["id"],
        "act": row["verdict"],
        "cnt": row["times"],
        "dvchost": row["nas"],
        "dvcaddr": row["trace"].get("address", ""),
        "deviceInboundInterface": row["port"],
        "smac": str(row["mac"] or "").replace("-", ":"),
        "suser": row["agent"],
        "suid": row["trace"].get("user_name", ""),
        "cs1Label": "owner" if row["owner"] else "",
        "cs1": row["owner"],
        "cs2Label": "department" if row["department"] else "",
        "cs2": row["department"],
        "cs3Label": "vlan" if row["vlan"] else "",
        "cs3": row["vlan"],
        "cs4Label": "rule" if row["rule"] else "",
        "cs4": row["rule"],
        "cs5Label": "serial" if row["serial"] else "",
        "cs5": row["serial"],
        "cn1Label": "policyRevision",
        "cn1": row["policy_revision"],
        "msg": _message(row),
    }
    pairs = " ".join(f"{key}={_extension(value)}" for key, value in extension.items() if value not in ("", None))
    return f"CEF:0|{'|'.join(map(_cef_header, head))}|{pairs}"


WIRE_FORMATS: Final[Mapping[str, Callable[[Line], str]]] = {"syslog": write_syslog, "cef": write_cef_message}
"""What a syslog receiver can be sent."""
FORMATS: Final[Mapping[str, Callable[[Line], str]]] = {"jsonl": write_json, "syslog": write_syslog, "cef": write_cef}


def enterprise_of(oid_arc: str) -> int:
    """The private enterprise number that an OID arc is under; that for documentation where it is under none."""
    enterprises = "1.3.6.1.4.1."
    return int(oid_arc.removeprefix(enterprises).split(".")[0]) if oid_arc.startswith(enterprises) else 32473


def _fields(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = ("id", "verdict", "vlan", "vlan_name", "reason", "rule", "agent", "owner", "department", "serial", "nas",
             "port", "mac", "session", "policy_revision", "times")  # fmt: skip
    found = [(name, "" if row[name] is None else str(row[name])) for name in names]
    return [*found, ("user_name", str(row["trace"].get("user_name", "")))]


def _meaning(row: Mapping[str, Any]) -> str:
    known = REASONS.get(row["reason"])
    return row["reason"] if known is None else known.meaning


def _message(row: Mapping[str, Any]) -> str:
    """The verdict, and the evidence of the stage that said no, or of the last one."""
    steps = row["trace"].get("steps", [])
    told = [step for step in steps if step["outcome"] == "fail"] or [step for step in steps if step["evidence"]]
    evidence = told[-1]["evidence"] if told else ""
    return f"{row['verdict']}: {_meaning(row)} {evidence}".strip()


def _plain(text: str) -> str:
    """Printable characters only: what RFC 5424, section 6.4 lets through and a terminal would obey stays out."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _header(text: str, limit: int) -> str:
    """A header field: 1 to `limit` characters of PRINTUSASCII, or the nil value (RFC 5424, section 6)."""
    kept = "".join(char for char in text if "!" <= char <= "~")[:limit]
    return kept or "-"


def _parameter(value: str) -> str:
    """A PARAM-VALUE: quote, backslash and closing bracket are escaped (RFC 5424, section 6.3.3)."""
    return _plain(value).replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")


def _cef_header(text: str) -> str:
    return _plain(text).replace("\\", "\\\\").replace("|", "\\|")


def _extension(value: object) -> str:
    return _plain(str(value)).replace("\\", "\\\\").replace("=", "\\=")
