from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest

from radius.errors import RaddbValueInvalid
from radius.render import NasEntry, RaddbValues, check_nas, render, write_raddb

PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
VALUES = RaddbValues(
    directory="/srv/raddb",
    address="127.0.0.1",
    port=1812,
    decision_url="https://127.0.0.1:8444/v1/decide",
    decision_ca_pem=PEM,
    token="0123456789abcdef-token",
    certificate_chain_pem=PEM * 2,
    key_pem=PEM.replace("CERTIFICATE", "PRIVATE KEY"),
    client_ca_pem=PEM,
    owner_id_oid="1.3.6.1.4.1.32473.2026.1.2",
    nas=[NasEntry("switch-1", "192.0.2.1", "secret-of-switch-1"), NasEntry("hall", "2001:db8::/64", "secret-of-hall")],
)


@pytest.mark.req("W-12")
def test_the_folder_says_what_matters() -> None:
    files = render(VALUES)
    assert "@" not in "".join(text for name, text in files.items() if not name.startswith("certs/"))
    eap, rest = files["mods-enabled/eap"], files["mods-enabled/rest"]
    assert "ca_file = ${confdir}/certs/client-cas.pem" in eap
    assert "auto_chain = no" in eap
    assert 'tls_min_version = "1.2"' in eap
    assert 'tls_max_version = "1.3"' in eap
    assert "enable = no" in eap.split("cache {")[1]
    assert "virtual_server = check-eap-tls" in eap
    assert "retry_delay = 1\n" in rest
    assert "start = 0" in rest
    assert "connect_uri" not in rest
    assert "&Auth-Type := Reject" in files["sites-enabled/check-eap-tls"]
    assert "Authorization: Bearer 0123456789abcdef-token" in files["sites-enabled/check-eap-tls"]
    assert files["clients.conf"].count("require_message_authenticator = yes") == 2
    assert "ipaddr = 2001:db8::/64" in files["clients.conf"]
    assert "Tunnel-Private-Group-Id !* ANY" in files["sites-enabled/default"]
    assert "TLS-Client-Cert-1.3.6.1.4.1.32473.2026.1.2\t3003\toctets" in files["dictionary"]
    assert "proxy_requests = no" in files["radiusd.conf"]
    assert 'confdir = "/srv/raddb"' in files["radiusd.conf"]


def test_the_guest_choice_is_written_out() -> None:
    text = render(replace(VALUES, fail_mode="guest", guest_vlan=99))["sites-enabled/check-eap-tls"]
    assert '&Tunnel-Private-Group-Id := "99"' in text
    assert text.index("Auth-Type := Reject") < text.index("if (fail && ")
    assert "{{" not in text


@pytest.mark.parametrize("fail_mode", ["closed", "guest", "last-known-good"])
def test_only_a_no_of_the_appliance_is_marked_as_decided(fail_mode: str) -> None:
    """Post-Auth-Type REJECT tells every other reject; a login that gets in has one condition for that and no more."""
    text = render(replace(VALUES, fail_mode=fail_mode, guest_vlan=99))["sites-enabled/check-eap-tls"]
    assert text.count("Tmp-Integer-0 := 1") == 1
    asked, said_no = text.index("\t\trest"), text.index("if (updated && (&control:Auth-Type == Reject)) {")
    assert asked < said_no < text.index("Tmp-Integer-0 := 1")


def test_what_is_let_in_during_an_outage_has_an_end() -> None:
    for fail_mode, guest_vlan, times in (("closed", 99, 0), ("guest", 99, 1), ("last-known-good", None, 1),
                                         ("last-known-good", 99, 2)):  # fmt: skip
        text = render(replace(VALUES, fail_mode=fail_mode, guest_vlan=guest_vlan))["sites-enabled/check-eap-tls"]
        assert text.count("&Session-Timeout := 300") == text.count("&Termination-Action := RADIUS-Request") == times


HOSTILE = ['a"b', "a}b", "a\nb", "a b", "${run_dir}", "%{md5:x}", "a\\b", "a#b", "a'b", "", "a\x00b", "$INCLUDE", "é"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_can_break_out_of_its_place(text: str) -> None:
    for changes in (
        # paths stand in quotes and may hold a blank, though not at their end
        {"directory": f"/srv/{text}".replace("a b", "a ")} if text else {"directory": ""},
        {"library_directory": f"/usr/{text}".replace("a b", "a ")} if text else {"library_directory": ""},
        {"token": f"0123456789abcdef{text}"} if text else {"token": ""},
        {"decision_url": f"https://127.0.0.1/{text}"} if text else {"decision_url": ""},
        {"owner_id_oid": f"1.2.3{text}"} if text else {"owner_id_oid": ""},
        {"address": f"fe80::1%{text}"},
        {"tls_min": text},
        {"key_pem": VALUES.key_pem + text} if text else {"key_pem": ""},
        {"nas": [NasEntry(f"a{text}" if text else "", "192.0.2.1", "long-enough-secret")]},
        {"nas": [NasEntry("a", f"fe80::1%{text}", "long-enough-secret")]},
        {"nas": [NasEntry("a", "192.0.2.1", f"long-enough-secret{text}" if text else "")]},
    ):
        with pytest.raises(RaddbValueInvalid):
            render(replace(VALUES, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"port": 0}, {"port": 65536}, {"port": "1812"}, {"port": True}, {"fragment_bytes": 100}, {"session_seconds": 0},
        {"max_sessions": 0}, {"reject_delay_seconds": -1}, {"fail_mode": "guest"}, {"fail_mode": "accept"},
        {"fail_mode": "guest", "guest_vlan": 4095}, {"decision_url": "http://127.0.0.1:8444/v1/decide"},
        {"decision_url": "https://user@127.0.0.1/x"}, {"directory": "relative"}, {"address": "localhost"},
        {"nas": [NasEntry("a", "192.0.2.1/24", "long-enough-secret")]},
        {"nas": [NasEntry("a", "192.0.2.1", "short")]},
        {"nas": [NasEntry("a", "192.0.2.1", "long-enough-secret"), NasEntry("a", "192.0.2.2", "long-enough-secret")]},
        {"nas": [NasEntry("a", "192.0.2.1", "long-enough-secret"), NasEntry("b", "192.0.2.1", "long-enough-secret")]},
        {"client_ca_pem": "not PEM"}, {"tls_min": "1.3", "tls_max": "1.2"},
    ],
)  # fmt: skip
def test_impossible_values_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(RaddbValueInvalid):
        render(replace(VALUES, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("max_sessions", "max_requests"), [(4096, 32_768), (17, 1024), (1_000_000, 8_000_000)])
def test_a_conversation_may_have_all_its_requests_kept(max_sessions: int, max_requests: int) -> None:
    config = render(replace(VALUES, max_sessions=max_sessions))["radiusd.conf"]
    assert f"max_requests = {max_requests}\n" in config


def test_a_refusal_never_shows_a_secret() -> None:
    for changes in ({"token": "se cret-token-0123456789"}, {"nas": [NasEntry("a", "192.0.2.1", "se cret-secret")]}):
        with pytest.raises(RaddbValueInvalid) as caught:
            render(replace(VALUES, **changes))  # type: ignore[arg-type]
        assert "cret-" not in caught.value.detail


def test_a_good_nas_passes_the_check_of_its_own() -> None:
    check_nas(NasEntry("switch-1.hall", "2001:db8::1", "0123456789abcdef0123456789abcdef"))


def test_files_are_for_owner_and_group_only_and_are_replaced_in_one_step(tmp_path: Path) -> None:
    directory = tmp_path / "raddb"
    write_raddb(render(VALUES), directory)
    (directory / "clients.conf").write_text("old")
    write_raddb(render(VALUES), directory)
    assert "switch-1" in (directory / "clients.conf").read_text()
    assert stat.S_IMODE((directory / "sites-enabled/check-eap-tls").stat().st_mode) == 0o640
    assert not list(directory.rglob(".*.new"))
    assert (directory / "run").is_dir()
    assert all(not stat.S_IMODE(path.stat().st_mode) & 0o007 for path in directory.rglob("*"))
