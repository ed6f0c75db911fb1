"""Which changes of a FreeRADIUS folder a HUP is enough for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from radius.reload import is_taken_by_hup
from radius.render import NasEntry, RaddbValues, RadSec, render
from tests.interop.radius_tools import raddb_values
from tests.radius.world import SECRET, campus

SERVER = campus().server()
ROOT = campus().cas["infrastructure"].pem.decode()


def radsec(*serials: str, address: str = "127.0.0.1") -> RadSec:
    return RadSec(address, ROOT, "spiffe://campus.example", serials, 2083)


def values(**changes: Any) -> RaddbValues:
    given = {
        "certificate_chain_pem": SERVER.pem.decode(), "key_pem": SERVER.key_pem.decode(), "fail_mode": "guest",
        "guest_vlan": 99, "radsec": radsec("0a"), **changes,
    }  # fmt: skip
    return raddb_values(Path("/srv/raddb"), 8444, 1812, **given)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"guest_vlan": 98}, True),
        ({"radsec": radsec("0a", "0b")}, True),
        ({"radsec": radsec("0a", address="127.0.0.2")}, False),
        ({"radsec": None}, False),
        ({"more_addresses": ["::1"]}, False),
        ({"address": "127.0.0.3"}, False),
        ({"nas": [NasEntry("switch-1", "127.0.0.1", "another-secret-of-the-switch")]}, False),
        ({"nas": [NasEntry("switch-2", "127.0.0.2", SECRET.decode())]}, False),
        ({"client_ca_pem": ROOT}, False),
        ({"certificate_chain_pem": ROOT}, False),
        ({"key_pem": campus().agent().key_pem.decode()}, False),
        ({"tls_max": "1.2"}, False),
        ({"max_sessions": 17}, False),
        ({"decision_url": "https://127.0.0.1:8445/v1/decide"}, False),
        ({"fail_mode": "last-known-good"}, False),
    ],
)
def test_what_only_virtual_servers_do_is_taken_by_hup(changes: dict[str, Any], expected: bool) -> None:
    assert is_taken_by_hup(render(values()), render(values(**changes))) is expected
