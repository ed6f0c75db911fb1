"""Every reason code of the catalogue is brought about by the code that gives it; a code without a way to it fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from radius import REASONS, AccessRequest, Decision, Facts, decide, read_policy
from radius.decide import refuse
from radius.eap_tls import Eap, write_eap
from radius.failures import read_failure, read_log_line
from radius.hook import AKI, SERIAL
from radius.request import CredentialRef
from radius.server import Nas
from tests.radius import test_bypass, test_decide
from tests.radius.failures import LOG_LINES, RECORDED
from tests.radius.test_decide import REJECTS, ask
from tests.radius.test_hook import document, text
from tests.radius.test_packets import GOOD, attribute, request_octets
from tests.radius.world import OWNER_ID_OID, Desk, radius_server
from tests.support import NOW

EAP = {"EAP-Message": text("0x02010005"), "EAP-Type": text("TLS")}


def told(said: list[str], **attributes: object) -> Callable[[], str]:
    """The code for what FreeRADIUS tells of a failed login."""
    body = {**EAP, "Module-Failure-Message": text(*said), **attributes}
    return lambda: read_failure(body, owner_id_oid=OWNER_ID_OID).code


def logged(line: str) -> Callable[[], str]:
    found = read_log_line(line)
    assert found is not None
    return lambda: found.code


def dropped(octets: bytes, **options: object) -> Callable[[], str]:
    """The code for a datagram that the embedded server is sent."""

    def act() -> str:
        desk = Desk()
        radius_server(desk, **options).datagram_received(octets, ("192.0.2.1", 1024))
        return desk.failures[-1].reason_code

    return act


def eap(packet: Eap) -> bytes:
    octets = write_eap(packet)
    return request_octets(bytes([79, len(octets) + 2]) + octets)


def decided(decision: Callable[[], Decision]) -> Callable[[], str]:
    return lambda: decision().reason_code


def bypass(request: AccessRequest = test_bypass.REQUEST, facts: Facts = test_bypass.FACTS) -> Callable[[], str]:
    return decided(lambda: decide(request, None, facts, read_policy(test_bypass.BYPASS)))


def timed_out() -> str:
    """A login whose supplicant never came back."""
    desk = Desk()
    server = radius_server(desk, session_seconds=0.0)
    server.datagram_received(eap(Eap(2, 1, 1, b"agent")), ("192.0.2.1", 1024))
    assert server.sessions == 1
    server.sweep()
    return desk.failures[-1].reason_code


WAYS: dict[str, Callable[[], str]] = {
    "tls-unknown-ca": told(RECORDED["stranger"]),
    "tls-certificate-expired": told(RECORDED["expired"]),
    "tls-certificate-not-yet-valid": told(RECORDED["not yet valid"]),
    "tls-certificate-unsuitable": told(RECORDED["server's certificate"]),
    "tls-certificate-revoked": told(["eap_tls: (TLS) OpenSSL says error 23 : certificate revoked"]),
    "tls-certificate-missing": told(["error:0A0000C7:SSL routines::peer did not return a certificate"]),
    "tls-refused-by-supplicant": told(RECORDED["supplicant with another root"]),
    "tls-handshake-failed": told(["eap_tls: (TLS) Failed reading from OpenSSL: error:0A0000C1::no shared cipher"]),
    "eap-not-offered": dropped(request_octets()),
    "eap-method-refused": told(RECORDED["PEAP"]),
    "eap-malformed": dropped(request_octets(b"\x4f\x06\x02\x01\x00\x09")),
    "eap-timeout": timed_out,
    "eap-login-unknown": dropped(
        request_octets(attribute(24, bytes(16)), attribute(79, write_eap(Eap(2, 5, 13, b"\x00"))))
    ),
    "credential-missing": decided(lambda: ask(**REJECTS["credential-missing"])),  # type: ignore[arg-type]
    "credential-ambiguous": decided(lambda: ask(**REJECTS["credential-ambiguous"])),  # type: ignore[arg-type]
    "credential-unreadable": decided(lambda: ask(**REJECTS["credential-unreadable"])),  # type: ignore[arg-type]
    "nas-unknown": dropped(GOOD, nas=lambda address: None),
    "radius-secret-wrong": dropped(GOOD, nas=lambda address: Nas("switch-1", b"another secret of thirty characters")),
    "radius-not-authenticated": dropped(b"\x01\x01\x00\x18" + bytes(16) + b"\x01\x04aa"),
    "radius-malformed": dropped(b"\x01\x01\x00\x20" + bytes(16) + b"\x01\x30" + bytes(10)),
    "radius-overloaded": dropped(eap(Eap(2, 1, 1, b"agent")), max_sessions=0),
    "decision-not-asked": told(RECORDED["decision port silent"], **{AKI: text("77:C1"), SERIAL: text("07")}),
    "radius-rejected": told(["something that nobody has seen before"]),
    "mac-bypass-off": decided(lambda: decide(test_bypass.REQUEST, None, test_bypass.FACTS, test_decide.POLICY_1)),
    "mac-bypass-unprotected": bypass(test_bypass.REQUEST._replace(transport="udp")),
    "mac-bypass-no-address": bypass(test_bypass.REQUEST._replace(calling_station="x")),
    "mac-bypass-stale": bypass(facts=test_bypass.FACTS._replace(snapshot_age_seconds=1e6)),
    "mac-bypass": bypass(),
    "credential-unknown": decided(lambda: ask(credential=None)),
    "credential-unmapped": decided(
        lambda: ask(test_decide.FROM_PROXY, test_decide.LDEVID, Facts(NOW), test_decide.POLICY_2)
    ),
    "proxy-suspended": decided(
        lambda: ask(
            test_decide.FROM_PROXY, test_decide.LDEVID, Facts(NOW, agent_state="suspended"), test_decide.POLICY_2
        )
    ),
    "rule-rejected": decided(
        lambda: ask(
            credential=test_decide.CREDENTIAL._replace(not_after=NOW.replace(year=2099)),
            facts=test_decide.FACTS._replace(agent_class="robot", now=NOW.replace(hour=23)),
            policy=test_decide.POLICY_2,
        )
    ),
    "rule-matched": decided(ask),
    **{
        code: decided(lambda code=code: ask(**REJECTS[code]))  # type: ignore[misc]
        for code in REJECTS
        if REASONS[code].stage != "tls" and code != "credential-unknown"
    },
}


def test_every_reason_code_has_a_way_to_it() -> None:
    assert set(WAYS) == set(REASONS)


@pytest.mark.parametrize("code", WAYS)
def test_a_code_is_given_by_what_it_stands_for(code: str) -> None:
    assert WAYS[code]() == code
    decision = refuse(AccessRequest(credential=CredentialRef("77", 1)), code) if REASONS[code].stage == "tls" else None
    assert decision is None or decision.steps[0].outcome == "fail"


def test_the_two_radius_servers_give_one_code_for_one_cause() -> None:
    assert logged(LOG_LINES["unknown NAS"])() == WAYS["nas-unknown"]()
    assert logged(LOG_LINES["wrong secret"])() == WAYS["radius-secret-wrong"]()
    assert told(["eap: No EAP session matching state 0x01"])() == WAYS["eap-login-unknown"]()
    assert told(RECORDED["no EAP"])() == "radius-rejected"  # with a trace of EAP in the request
    body = {"User-Name": text("x"), "Module-Failure-Message": text(*RECORDED["no EAP"])}
    assert read_failure(body, owner_id_oid=OWNER_ID_OID).code == WAYS["eap-not-offered"]()


def test_mac_bypass_that_freeradius_rejected_itself_was_not_decided() -> None:
    body = {"Service-Type": text("Call-Check"), "User-Name": text("x"), "Calling-Station-Id": text("02-00-00-00-00-01")}
    for said in (RECORDED["no EAP"], ["rest: Server returned no data"]):
        body["Module-Failure-Message"] = text(*said)
        assert read_failure(body, owner_id_oid=OWNER_ID_OID).code == "decision-not-asked"


def test_a_log_line_names_the_address_and_the_client() -> None:
    found = read_log_line(LOG_LINES["wrong secret"])
    assert found is not None
    assert (found.request.nas, found.request.nas_address) == ("switch-1", "127.0.0.2")
    assert read_log_line("Sat Nov 28 16:34:00 2026 : Info: Ready to process requests") is None


@pytest.mark.parametrize(("name", "words"), [
    ("supplicant with another root", "campus root missing (alert unknown ca)"),
    ("supplicant with another server name", "often a wrong server name (alert internal error)"),
    ("stranger", "issued by an unknown CA: /CN=x, issued by /CN=y"),
])  # fmt: skip
def test_the_evidence_is_in_plain_words(name: str, words: str) -> None:
    names = {"TLS-Client-Cert-Subject": text("/CN=x"), "TLS-Client-Cert-Issuer": text("/CN=y")}
    body = document() | EAP | {"Module-Failure-Message": text(*RECORDED[name])} | (names if name == "stranger" else {})
    failure = read_failure(body, owner_id_oid=OWNER_ID_OID)
    assert failure.detail.endswith(words)
    assert (failure.request.nas, failure.request.calling_station) == ("switch-1", "02-00-00-00-00-01")
