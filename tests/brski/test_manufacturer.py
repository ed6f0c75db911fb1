"""The registrar's list of manufacturers: who is known, which MASA is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brski import Manufacturer, MasaNotAllowed, MasaUnknown, MasaUriInvalid, identify
from brski.idevid import IDevID, read_idevid
from tests.brski.trio import MASA, device, factory
from tests.support import NOW

ACME = Manufacturer("Acme", factory().device_anchors)


def idevid(masa_uri: str) -> IDevID:
    return replace(read_idevid(device().certificate), masa_uri=masa_uri)


@pytest.mark.req("B-155", "B-157", "B-158")
@pytest.mark.parametrize(
    ("named", "configured", "allowed", "asked"),
    [
        ("", "masa.example", (), "masa.example:443"),
        ("masa.example:9443", "", ("masa.example:9443",), "masa.example:9443"),
        ("masa.example:9443", "https://masa.example:9443/x", (), "masa.example:9443"),
        ("MASA.example", "", ("https://masa.example",), "masa.example:443"),
        ("127.0.0.1:9443", "", ("127.0.0.1:9443",), "127.0.0.1:9443"),
        ("b.example", "a.example", ("b.example",), "b.example:443"),
    ],
)
def test_masa_is_the_one_the_device_names_if_it_is_listed(
    named: str, configured: str, allowed: tuple[str, ...], asked: str
) -> None:
    entry = replace(ACME, masa=configured, allowed_masas=frozenset(allowed))
    assert entry.masa_of(idevid(named)).authority == asked


@pytest.mark.req("B-158", "T-24")
@pytest.mark.parametrize(
    ("named", "configured", "allowed"),
    [
        ("127.0.0.1:9443", "masa.example", ()),
        ("masa.example:9443", "masa.example", ()),
        ("masa.example", "", ("masa.example:9443",)),
        ("evil-masa.example", "", ("masa.example",)),
        ("masa.example.evil.example", "", ("masa.example",)),
        ("[::1]:443", "", ("127.0.0.1",)),
    ],
)
def test_masa_off_the_list_is_not_asked(named: str, configured: str, allowed: tuple[str, ...]) -> None:
    entry = replace(ACME, masa=configured, allowed_masas=frozenset(allowed))
    with pytest.raises(MasaNotAllowed):
        entry.masa_of(idevid(named))


@pytest.mark.req("B-157")
def test_device_and_manufacturer_without_masa() -> None:
    with pytest.raises(MasaUnknown):
        ACME.masa_of(idevid(""))


@pytest.mark.req("B-156")
def test_plain_http_is_refused_on_the_list_too() -> None:
    with pytest.raises(MasaUriInvalid):
        replace(ACME, masa="http://masa.example/").masa_of(idevid(MASA))


@pytest.mark.req("B-251")
def test_pledge_is_identified_by_the_first_manufacturer_whose_anchor_ends_its_chain() -> None:
    other = Manufacturer("Other", factory("Other").device_anchors)
    known = identify(device().certificate, device().issuers, [other, ACME], now=NOW)
    assert known.manufacturer is ACME
    assert known.path == (*device().chain, factory().device_root.certificate)
    again = identify(device().certificate, device().chain, iter([ACME]), now=NOW)
    assert again.idevid.device == known.idevid.device
