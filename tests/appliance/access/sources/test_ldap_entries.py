from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.access.owner_rows import check_department, check_name, check_ref
from appliance.access.sources.ldap_entries import (
    MAX_DEPARTMENTS,
    Attributes,
    escape,
    read_key,
    read_person,
    search_filter,
)
from appliance.settings import DirectorySettings
from tests.support import NOW

NAMES = Attributes("uid", "cn", "entryUUID", ("departmentNumber",), "memberOf", "ou=groups,dc=x")
STATE = st.binary(max_size=24) | st.sampled_from([b"512", b"514", b"0", b"9223372036854775807", b"TRUE", b"-1"])


@given(st.text(max_size=40))
def test_an_escaped_value_cannot_end_or_widen_a_filter(text: str) -> None:
    found = escape(text)
    assert re.fullmatch(r"(?:[^()*\\\x00-\x1f\x7f-\uffff]|\\[0-9a-f]{2})*", found)
    octets = re.sub(r"\\([0-9a-f]{2})", lambda one: chr(int(one[1], 16)), found).encode("latin-1")
    assert octets == text.encode("utf-8", "surrogatepass")
    assert search_filter("(a=b)", "uid", text) == f"(&(a=b)(uid={found}))"


@given(
    st.dictionaries(
        st.sampled_from([name.lower() for name in NAMES.wanted]), st.lists(st.binary(max_size=80), max_size=20)
    )
)
def test_whatever_an_entry_holds_only_texts_within_their_rules_come_out(values: dict[str, list[bytes]]) -> None:
    person = read_person(values, NAMES, NOW)
    assert all(check_ref(one) == one for one in person.refs)
    assert all(check_name(one) == one for one in person.names)
    assert all(check_department(one) == one for one in person.departments)
    assert len(person.departments) <= MAX_DEPARTMENTS
    assert person.key.isascii() and (person.key == "" or person.key.isprintable())


@given(
    st.fixed_dictionaries(
        {}, optional={name: st.lists(STATE, max_size=2) for name in ("useraccountcontrol", "accountexpires")}
    )
)
def test_an_account_whose_state_cannot_be_read_is_disabled(values: dict[str, list[bytes]]) -> None:
    person = read_person(values, NAMES, NOW)
    for name in values:
        found = values[name]
        if found and (len(found) > 1 or not re.fullmatch(rb"-?[0-9]{1,20}", found[0])):
            assert not person.is_enabled
            assert any("counts as disabled" in one for one in person.defects)


@pytest.mark.parametrize(
    ("attribute", "value", "is_enabled"),
    [
        ("nsaccountlock", b"TRUE", False),
        ("nsaccountlock", b"false", True),
        ("pwdaccountlockedtime", b"000001010000Z", False),
        ("pwdaccountlockedtime", b"20250101000000Z", True),
        ("useraccountcontrol", b"66048", True),
        ("useraccountcontrol", b"66050", False),
        ("accountexpires", b"-5", False),
        ("accountexpires", b"99999999999999999999", True),
        ("accountexpires", b"1", False),
    ],
)
def test_states_of_accounts(attribute: str, value: bytes, is_enabled: bool) -> None:
    assert read_person({attribute: [value]}, NAMES, NOW + timedelta()).is_enabled is is_enabled


@pytest.mark.parametrize(
    ("attribute", "values", "key"),
    [
        ("entryUUID", [b"5d1d7c4a-0d6e-4a0b-8a0e-6c9b5a3f7e21"], "5d1d7c4a-0d6e-4a0b-8a0e-6c9b5a3f7e21"),
        ("objectGUID", [bytes(range(16))], "03020100-0504-0706-0809-0a0b0c0d0e0f"),
        ("objectGUID", [b"short"], ""),
        ("entryUUID", [b"a", b"b"], ""),
        ("entryUUID", [b"x" * 200], ""),
        ("entryUUID", [b"\xff\x00"], "ff00"),
        ("entryUUID", [], ""),
    ],
)
def test_keys(attribute: str, values: list[bytes], key: str) -> None:
    assert read_key({attribute.lower(): values}, attribute) == key


def test_groups_count_below_their_base_alone() -> None:
    values = {
        "memberof": [
            b"CN=R\\2bD\\, Lab,OU=Groups,DC=x",
            b"cn=VPN,ou=other,dc=x",
            b"cn=evil,ou=groups,dc=x,dc=evil",
            b"not a name",
            b"cn=" + b"x" * 100 + b",ou=groups,dc=x",
        ]
    }
    found = read_person(values, NAMES, NOW)
    assert (found.departments, len(found.defects)) == (("R+D, Lab",), 2)


@pytest.mark.parametrize(
    "settings",
    [
        {"ldap_filter": "uid=x"},
        {"ldap_filter": "(uid=x)(uid=y)"},
        {"ldap_filter": "(uid=x"},
        {"ldap_filter": "(uid=x))"},
        {"ldap_ref": "uid)(x=*"},
        {"ldap_key": "a b"},
        {"ldap_departments": ("ou;lang-en",)},
        {"ldap_url": "http://x"},
        {"ldap_url": "ldap://x/dc=y"},
        {"ldap_url": "ldap://user@x"},
    ],
)
def test_settings_that_could_change_a_filter_or_a_server_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="wanted|attribute"):
        DirectorySettings(**settings)  # type: ignore[arg-type]


def test_the_sites_own_filter_may_be_as_rich_as_it_likes() -> None:
    for text in ("(&(objectClass=person)(!(uid=x)))", "(cn=a\\29b)", "(|(a=1)(b=2))"):
        assert DirectorySettings(ldap_filter=text).ldap_filter == text
