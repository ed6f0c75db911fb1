from __future__ import annotations

import json

import pytest

from radius import read_policy
from radius.errors import HookMalformed
from radius.hook import AKI, NAS_ADDRESS, NAS_NAME, SAN, SERIAL, TLS_VERSION, TRANSPORT, read_hook, write_answer
from radius.request import CredentialRef, clean_text, read_owner_id
from tests.radius.test_decide import ask, with_owner
from tests.radius.world import AGENT, ALICE, OWNER_ID_OID

OWNER_ID = f"TLS-Client-Cert-{OWNER_ID_OID}"


def text(*values: str) -> dict[str, object]:
    return {"type": "string", "value": list(values)}


def document(**changes: object) -> dict[str, object]:
    given: dict[str, object] = {
        "User-Name": text("anonymous"),
        "NAS-Port": {"type": "integer", "value": [7]},
        "Calling-Station-Id": text("02-00-00-00-00-01"),
        NAS_NAME: text("switch-1"),
        NAS_ADDRESS: text("192.0.2.7"),
        TLS_VERSION: text("TLS 1.3"),
        AKI: text("77:C1:0A"),
        SERIAL: text("00ff"),
        SAN: text(f"URI:{AGENT}"),
        OWNER_ID: {"type": "octets", "value": ["0x16" + f"{len(ALICE):02x}" + ALICE.encode().hex()]},
    }
    return given | changes


def without(*names: str) -> dict[str, object]:
    return {name: value for name, value in document().items() if name not in names}


@pytest.mark.req("W-12")
def test_the_document_of_rlm_rest_becomes_a_request() -> None:
    request = read_hook(document(), owner_id_oid=OWNER_ID_OID)
    assert request.credential == CredentialRef("77c10a", 255)
    assert (request.nas, request.nas_address, request.nas_port) == ("switch-1", "192.0.2.7", "7")
    assert (request.tls_version, request.user_name) == ("1.3", "anonymous")
    assert (request.owner_id_hint, request.san, request.defect) == (ALICE, f"URI:{AGENT}", "")


@pytest.mark.parametrize("aki", ["77:C1:0A", "77:c1:0a", "keyid:77:C1:0A", "keyid:77:C1:0A\n", " 77:C1:0A\n"])
def test_the_issuer_key_may_come_in_openssls_forms(aki: str) -> None:
    request = read_hook(document() | {AKI: text(aki)}, owner_id_oid=OWNER_ID_OID)
    assert request.credential == CredentialRef("77c10a", 255)


@pytest.mark.parametrize(
    ("changed", "defect"),
    [
        (without(AKI), "credential-missing"),
        (without(SERIAL), "credential-missing"),
        (without(AKI, SERIAL), "credential-missing"),
        (document() | {SERIAL: text()}, "credential-missing"),
        (document() | {SERIAL: text("")}, "credential-missing"),
        (document() | {AKI: text("")}, "credential-missing"),
        (document() | {SERIAL: text("01", "02")}, "credential-ambiguous"),
        (document() | {AKI: text("77", "78")}, "credential-ambiguous"),
        (document() | {SERIAL: text("xyz")}, "credential-unreadable"),
        (document() | {SERIAL: text("01 ")}, "credential-unreadable"),
        (document() | {SERIAL: text("-1")}, "credential-unreadable"),
        (document() | {SERIAL: text("0")}, "credential-unreadable"),
        (document() | {SERIAL: text("f" * 41)}, "credential-unreadable"),
        (document() | {AKI: text("77C1")}, "credential-unreadable"),
        (document() | {AKI: text("77:C1\nserial:01")}, "credential-unreadable"),
        (document() | {AKI: text("DirName:/CN=x")}, "credential-unreadable"),
    ],
)
def test_anything_but_one_issuer_key_and_one_serial_is_a_reject(changed: dict[str, object], defect: str) -> None:
    request = read_hook(changed, owner_id_oid=OWNER_ID_OID)
    assert (request.credential, request.defect) == (None, defect)
    assert ask(request=request).verdict == "reject"


@pytest.mark.parametrize(
    ("hint", "defect"),
    [
        (text("0x1603616263"), ""),
        (text("1603616263"), ""),
        (text("0x1603616263", "0x1603616263"), "credential-ambiguous"),
        (text("0x16046162"), "credential-unreadable"),
        (text("0x0c03616263"), "credential-unreadable"),
        (text("0x160361626300"), "credential-unreadable"),
        (text("0x1603616280"), "credential-unreadable"),
        (text("0x1603610062"), "credential-unreadable"),
        (text("zz"), "credential-unreadable"),
        (text(""), "credential-unreadable"),
    ],
)
def test_a_damaged_owner_extension_is_a_reject(hint: dict[str, object], defect: str) -> None:
    request = read_hook(document() | {OWNER_ID: hint}, owner_id_oid=OWNER_ID_OID)
    assert request.defect == defect
    assert request.owner_id_hint == (None if defect else "abc")
    assert ask(request=request).verdict == "reject"


def test_two_names_arrive_as_one_text_that_matches_no_agent() -> None:
    request = read_hook(document() | {SAN: text(f"URI:{AGENT}, URI:{AGENT}")}, owner_id_oid=OWNER_ID_OID)
    assert request.san == f"URI:{AGENT}, URI:{AGENT}"


@pytest.mark.parametrize(
    "bad",
    [None, [], "x", 1, {"User-Name": "x"}, {"User-Name": [1]}, {"User-Name": {"value": [None]}},
     {"User-Name": {"value": [True]}}, {"User-Name": {"value": [1.5]}}, {"User-Name": {"value": [{}]}},
     {"User-Name": {}},
     {f"A{n}": {"value": ["x"]} for n in range(401)}],
)  # fmt: skip
def test_a_body_of_another_form_is_malformed(bad: object) -> None:
    with pytest.raises(HookMalformed):
        read_hook(bad, owner_id_oid=OWNER_ID_OID)


def test_texts_of_the_nas_are_fit_to_print() -> None:
    request = read_hook(document() | {"User-Name": text("a\nb\x1b[31m" + "c" * 300)}, owner_id_oid=OWNER_ID_OID)
    assert request.user_name.startswith("a?b?[31m")
    assert len(request.user_name) == 253


def test_every_value_of_the_answer_is_kept_from_expansion() -> None:
    answer = json.loads(write_answer(ask()._replace(txn="%{md5:x}")))
    for value in answer.values():
        assert value["do_xlat"] is False
        assert isinstance(value["value"], list)
    assert answer["control:Auth-Type"]["value"] == ["Accept"]
    assert answer["reply:Tunnel-Private-Group-Id"]["value"] == ["20"]
    assert answer["reply:Tunnel-Type"]["value"] == ["VLAN"]
    assert answer["reply:Class"]["value"] == ["0x" + b"%{md5:x}".hex()]


def test_a_reject_is_said_so_and_names_no_vlan() -> None:
    answer = json.loads(write_answer(ask(credential=None)))
    assert answer["control:Auth-Type"]["value"] == ["Reject"]
    assert answer.keys() == {"control:Auth-Type", "reply:Reply-Message"}


@pytest.mark.req("W-12")
def test_the_longest_owner_id_is_120_characters() -> None:
    assert read_owner_id(bytes([0x16, 120]) + b"x" * 120) == "x" * 120
    with pytest.raises(HookMalformed):
        read_owner_id(bytes([0x16, 121]) + b"x" * 121)


def test_clean_text_cuts_and_replaces() -> None:
    assert clean_text("abc") == "abc"
    assert clean_text("a\u202eb\u0000", 3) == "a?b"


MAB = {
    "User-Name": text("020000000001"),
    "Service-Type": text("Call-Check"),
    "Calling-Station-Id": text("02-00-00-00-00-01"),
    NAS_NAME: text("switch-1"),
    NAS_ADDRESS: text("127.0.0.1"),
}


@pytest.mark.parametrize(
    ("changes", "transport"),
    [
        ({}, "loopback"),
        ({NAS_ADDRESS: text("::1")}, "loopback"),
        ({NAS_ADDRESS: text("192.0.2.7")}, "udp"),
        ({NAS_ADDRESS: text("192.0.2.7"), "NAS-IP-Address": text("127.0.0.1")}, "udp"),
        ({NAS_ADDRESS: text("127.0.0.1", "192.0.2.7")}, "udp"),
        ({NAS_ADDRESS: text("localhost")}, "udp"),
        ({NAS_ADDRESS: text("192.0.2.7"), TRANSPORT: text("radsec")}, "radsec"),
        ({NAS_ADDRESS: text("192.0.2.7"), TRANSPORT: text("udp")}, "udp"),
        ({"Service-Type": {"type": "integer", "value": [10]}}, "loopback"),
    ],
)
def test_a_port_that_asks_by_mac_address_is_known_with_its_transport(changes: dict, transport: str) -> None:
    request = read_hook(MAB | changes, owner_id_oid=OWNER_ID_OID)
    assert (request.method, request.transport, request.defect) == ("mac-bypass", transport, "")
    assert (request.calling_station, request.credential) == ("02-00-00-00-00-01", None)


@pytest.mark.parametrize(
    "changes",
    [
        {"Service-Type": text("Framed-User")},
        {"Service-Type": text("Call-Check", "Call-Check")},
        {"EAP-Message": text("0x0201")},
        {"EAP-Type": text("TLS")},
        {SERIAL: text("00ff")},
        {"TLS-Client-Cert-Subject": text("/CN=x")},
    ],
)
def test_a_trace_of_eap_makes_it_a_login_by_certificate(changes: dict) -> None:
    request = read_hook(MAB | changes, owner_id_oid=OWNER_ID_OID)
    assert (request.method, request.transport) == ("eap-tls", "")
    assert request.defect == "credential-missing"


HOSTILE = [
    "%{exec:/bin/sh -c id}",
    '"; DROP TABLE owners; --',
    "x" * 300,
    "\u202eevil\u2066R&D\u2069",
    "%{sql:x}\n${y}",
]


@pytest.mark.parametrize("department", HOSTILE)
@pytest.mark.parametrize("is_mapped", [True, False])
def test_a_hostile_department_is_inert_in_every_answer(department: str, is_mapped: bool) -> None:
    rule = '[[rule]]\nname = "r"\ndepartment = "R&D"\nvlan = "a"\nrole = "r"\nfilter_id = "f"\nsession_timeout = 60\n'
    policy = read_policy("version = 2\n[vlans]\na = 10\nguest = 99\n" + rule)
    departments = (department, "R&D") if is_mapped else (department,)
    decision = ask(facts=with_owner(departments=departments), policy=policy)
    assert decision.verdict == ("accept" if is_mapped else "guest")
    answer = json.loads(write_answer(decision))
    assert all(member["do_xlat"] is False for member in answer.values())
    assert all(value.isprintable() for member in answer.values() for value in member["value"])
    assert not any(department[:20] in value for member in answer.values() for value in member["value"])
    assert len(decision.department) <= 253
    assert decision.department.isprintable()
    assert all(step.evidence.isprintable() for step in decision.steps)


def test_every_outcome_of_a_rule_is_kept_from_expansion() -> None:
    decision = ask()._replace(vlan="%{exec:id}", role="%{md5:x}", filter_id="${x}", session_timeout=60, note="%{x}")
    answer = json.loads(write_answer(decision))
    assert {"reply:Filter-Id", "reply:Aruba-User-Role", "reply:Session-Timeout", "reply:Termination-Action"} <= set(
        answer
    )
    assert [name for name, member in answer.items() if member["do_xlat"] is not False] == []
    assert answer["reply:Termination-Action"]["value"] == ["RADIUS-Request"]
