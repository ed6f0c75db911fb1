"""The registrar's list of manufacturers: who is known, which MASA is asked."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest

from brski import Manufacturer, ManufacturerUnknown, MasaNotAllowed, MasaUnknown, MasaUriInvalid, identify
from brski.idevid import IDevID, read_idevid
from est.chains import TrustAnchors
from lab.certificates import common_name, issue, make_leaf, make_root
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


@pytest.mark.req("B-251", "T-23", "T-36")
def test_a_stranger_whose_cas_certify_each_other_costs_as_much_as_any_other() -> None:
    """Seven hundred paths lead from this certificate to nowhere, and each might end at one of twenty makers."""
    nowhere = make_root("Nowhere", now=NOW - timedelta(days=90))
    key, name, end = nowhere.key, nowhere.certificate.subject, NOW + timedelta(days=90)
    many = [issue(key, name, key, name, now=NOW - timedelta(days=at), not_after=end, ca=True) for at in range(6)]
    stranger = make_leaf(nowhere, common_name("stranger"), now=NOW, not_after=NOW + timedelta(days=1)).certificate
    makers = [Manufacturer(name, TrustAnchors([make_root(name, now=NOW).certificate])) for name in map(str, range(20))]

    def cost() -> float:
        begun = time.thread_time()
        with pytest.raises(ManufacturerUnknown):
            identify(stranger, many, makers, now=NOW + timedelta(days=2))
        return time.thread_time() - begun

    assert min(cost() for _ in range(3)) < 0.010
