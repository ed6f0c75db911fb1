"""A path that was found once is believed again, within its dates and under its anchors, and nothing else is."""

from __future__ import annotations

import pytest

from est import chains, profiles
from est.errors import CertificateOutsideValidity, ChainNotTrusted
from est.known_paths import KnownPaths
from tests.est.pki import DAY, YEAR, campus, sign, terms
from tests.support import NOW, key


def test_the_second_time_the_certificate_alone_is_enough() -> None:
    own = campus()
    root = chains.TrustAnchors((own.root,))
    paths = KnownPaths(chains.CLIENT)
    with pytest.raises(ChainNotTrusted):
        paths.check(own.proxy, (), root, at=NOW)
    paths.check(own.proxy, (own.ca,), root, at=NOW)
    paths.check(own.proxy, (), root, at=NOW)
    assert len(paths) == 1


def test_dates_are_asked_every_time() -> None:
    own = campus()
    anchors = chains.TrustAnchors((own.ca,))
    paths = KnownPaths(chains.CLIENT)
    paths.check(own.proxy, (), anchors, at=NOW)
    for moment in (own.proxy.not_valid_after_utc + DAY, own.proxy.not_valid_before_utc - DAY):
        with pytest.raises(CertificateOutsideValidity):
            paths.check(own.proxy, (), anchors, at=moment)
    paths.check(own.proxy, (), anchors, at=NOW)


def test_the_issuers_dates_count_as_well() -> None:
    own = campus()
    long = sign(
        profiles.ldevid(
            profiles.Terms.under(own.ca, serial=9, not_before=NOW - DAY, not_after=own.ca.not_valid_after_utc),
            profiles.name("long"),
            key("long").public_key(),
            identifier="spiffe://campus.example/proxy/9",
        ),
        key("campus ca"),
    )
    anchors = chains.TrustAnchors((own.ca,))
    paths = KnownPaths(chains.CLIENT)
    paths.check(long, (), anchors, at=NOW)
    with pytest.raises(CertificateOutsideValidity):
        paths.check(long, (), anchors, at=own.ca.not_valid_after_utc + YEAR)


def test_other_anchors_know_nothing_of_it() -> None:
    own, other = campus(), campus("other")
    paths = KnownPaths(chains.CLIENT)
    paths.check(own.proxy, (), chains.TrustAnchors((own.ca,)), at=NOW)
    with pytest.raises(ChainNotTrusted):
        paths.check(own.proxy, (), chains.TrustAnchors((other.ca,)), at=NOW)


def test_refusals_are_not_kept_and_the_oldest_paths_are_forgotten() -> None:
    own = campus()
    anchors = chains.TrustAnchors((own.ca,))
    paths = KnownPaths(chains.CLIENT, max_paths=2)
    made = [
        sign(
            profiles.ldevid(
                terms(own.ca, serial),
                profiles.name(f"proxy {serial}"),
                key("proxy").public_key(),
                identifier=f"spiffe://campus.example/proxy/{serial}",
            ),
            key("campus ca"),
        )
        for serial in (11, 12, 13)
    ]
    with pytest.raises(ChainNotTrusted):
        paths.check(made[0], (), chains.TrustAnchors(()), at=NOW)
    assert len(paths) == 0
    for one in made:
        paths.check(one, (), anchors, at=NOW)
    assert len(paths) == 2
