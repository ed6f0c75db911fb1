"""Lines for other programs: whatever strangers put into a row, it stays one line and one field."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.access.log_export import FORMATS, Line, enterprise_of, write_cef, write_json, write_syslog
from tests.support import examples

TIME = datetime(2026, 11, 28, 16, 34, 2, 123456, tzinfo=UTC)
EVIL = 'a"b]c\\d|e=f\r\n<34>1 forged\u2028\u202e\x00\x1b[31m'


def row(**changes: object) -> dict[str, object]:
    given_: dict[str, object] = {
        "id": 7, "time": TIME.isoformat(), "verdict": "reject", "vlan": None, "vlan_name": "",
        "reason": "owner-suspended", "rule": "", "agent": "spiffe://campus.example/agent/1", "owner": "spiffe://campus.example/owner/2",
        "department": "R&D", "serial": "1f", "nas": "sw-1", "port": "17", "mac": "02-00-00-00-00-01", "session": "",
        "policy_revision": 3, "times": 1,
        "trace": {"user_name": "ceo", "address": "192.0.2.7", "steps": [
            {"stage": "tls", "outcome": "pass", "evidence": "TLS 1.3"},
            {"stage": "owner", "outcome": "fail", "evidence": "owner x is suspended"},
        ]},
    }  # fmt: skip
    return given_ | changes


def line(**changes: object) -> Line:
    return Line(row(**changes), TIME, "campus1", 32473)


def test_a_row_as_a_syslog_message() -> None:
    assert write_syslog(line()) == (
        "<84>1 2026-11-28T16:34:02.123456Z campus1 campus-appliance - owner-suspended "
        '[decision@32473 id="7" verdict="reject" reason="owner-suspended" agent="spiffe://campus.example/agent/1" '
        'owner="spiffe://campus.example/owner/2" department="R&D" serial="1f" nas="sw-1" port="17" '
        'mac="02-00-00-00-00-01" policy_revision="3" times="1" user_name="ceo"] '
        "\ufeffreject: The owner is suspended. owner x is suspended"
    )


def test_a_row_as_cef() -> None:
    text = write_cef(line(vlan="20", verdict="accept", reason="rule-matched", rule="a=b|c"))
    assert text.startswith("CEF:0|campus-appliance|decision-log|")
    assert "|rule-matched|A rule of the policy takes this owner's department.|1|rt=1795883642123 externalId=7 " in text
    assert r"cs4Label=rule cs4=a\=b|c " in text
    assert "smac=02:00:00:00:00:01" in text


def test_severity_follows_the_verdict() -> None:
    assert [write_syslog(line(verdict=one))[:4] for one in ("accept", "guest", "reject")] == ["<86>", "<85>", "<84>"]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("field", ["agent", "department", "nas", "port", "rule", "reason", "session", "vlan"])
@examples(30)
@given(st.just(EVIL) | st.text(max_size=40))
def test_nothing_ends_a_line_or_leaves_its_field(format_: str, field: str, text: str) -> None:
    found = FORMATS[format_](line(**{field: text}))
    assert found.isprintable() or found.replace("\ufeff", "").isprintable()
    assert len(found.splitlines()) == 1
    if format_ == "jsonl":
        assert json.loads(found)[field] == text
    elif format_ == "syslog":
        head, _, rest = found.partition(" [decision@32473 ")
        assert re.fullmatch(r"<8[456]>1 \S+ \S+ campus-appliance - [!-~]{1,32}", head)
        data = re.match(r'((?:[a-z_]+="(?:[^"\\\]]|\\["\\\]])*" ?)+)\] \ufeff', rest)
        assert data is not None
        assert (
            len(re.findall(r'[a-z_]+="(?:[^"\\\]]|\\["\\\]])*"', data[1]))
            == data[1].count('="') - data[1].count('=\\"')
            or text
        )
    else:
        parts = re.split(r"(?<!\\)(?:\\\\)*\|", found.split("rt=")[0])
        assert len(parts) == 8
        keys = re.findall(r"(?:^| )([A-Za-z0-9]+)(?<!\\)=", found[found.index("rt=") :])
        assert keys[0] == "rt"
        assert keys[-1] == "msg"


def test_json_keeps_every_character() -> None:
    assert json.loads(write_json(line(department=EVIL)))["department"] == EVIL


@pytest.mark.parametrize(
    ("arc", "pen"), [("1.3.6.1.4.1.32473.2026.1", 32473), ("1.3.6.1.4.1.9", 9), ("2.25.77", 32473)]
)
def test_the_enterprise_number_is_that_of_the_arc(arc: str, pen: int) -> None:
    assert enterprise_of(arc) == pen


def test_a_sender_without_a_name_is_the_nil_value() -> None:
    assert " - campus-appliance " in write_syslog(line()._replace(sender="\x00\n"))
