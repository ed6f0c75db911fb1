"""DNS-SD names, TXT keys, order and pauses."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from brski import AnnouncementInvalid, discovery
from brski.discovery import Offer, backoff_seconds, instance_name, order, read_txt, write_txt


@pytest.mark.req("B-101", "B-102")
def test_both_service_types_have_their_registered_names() -> None:
    assert discovery.REGISTRAR_SERVICE == "_brski-registrar._tcp.local."
    assert discovery.PROXY_SERVICE == "_brski-proxy._tcp.local."


@pytest.mark.req("B-118")
def test_instance_names() -> None:
    assert instance_name("00:d0:e5") == "00-d0-e5._brski-registrar._tcp.local."
    assert instance_name("r1", discovery.PROXY_SERVICE) == "r1._brski-proxy._tcp.local."
    for label in ("", "a.b", "x" * 64, "a\nb"):
        with pytest.raises(AnnouncementInvalid):
            instance_name(label)


@pytest.mark.req("B-114")
def test_txt_record_has_keys_without_values() -> None:
    assert write_txt() == {b"est-tls": None}
    assert write_txt(["EST-TLS", "prm-jose"]) == {b"est-tls": None, b"prm-jose": None}
    for key in ("", "a=b", "a b", "ü", "x" * 64, "a\n"):
        with pytest.raises(AnnouncementInvalid):
            write_txt([key])


@pytest.mark.req("B-114")
@pytest.mark.parametrize(
    ("record", "variations"),
    [
        ({}, {"est-tls"}),
        ({b"": None}, {"est-tls"}),
        ({b"EST-tls": None}, {"est-tls"}),
        ({b"cmp": None, b"priority": b"1"}, {"cmp"}),
        ({b"\xff\xfe": None}, {"est-tls"}),
        ({b"est-tls": b""}, {"est-tls"}),
        ({b"a\nb": None, b"prm-jose": None}, {"prm-jose"}),
    ],
)
def test_txt_records_are_read(record: dict[bytes, bytes | None], variations: set[str]) -> None:
    assert read_txt(record) == variations


@pytest.mark.req("B-114")
def test_txt_record_round_trip() -> None:
    assert read_txt(write_txt(["est-tls", "cmp"])) == {"est-tls", "cmp"}


def offer(instance: str, priority: int = 0, *variations: str, addresses: tuple[str, ...] = ("192.0.2.1",)) -> Offer:
    return Offer(instance, addresses, 8443, frozenset(variations or ("est-tls",)), priority)


@pytest.mark.req("B-115")
def test_offers_are_tried_by_variation_then_priority() -> None:
    offers = [offer("c", 1), offer("b", 0, "cmp"), offer("a", 0, "est-tls", "cmp"), offer("d", 0, "prm-jose")]
    names = [one.instance for one in order(offers, preference=("est-tls", "cmp"), shuffle=lambda _: None)]
    assert names == ["a", "c", "b"]
    assert order([offer("x", addresses=())], shuffle=lambda _: None) == []


@pytest.mark.req("B-115")
def test_equal_offers_are_tried_in_random_order() -> None:
    dice = random.Random(7)
    offers = [offer(name) for name in "abcdefghij"]
    first = Counter(order(offers, shuffle=dice.shuffle)[0].instance for _ in range(2000))
    assert set(first) == set("abcdefghij")
    assert min(first.values()) > 120


@pytest.mark.req("B-115")
def test_flood_of_announcements_is_cut() -> None:
    assert len(order([offer(str(i)) for i in range(10_000)], shuffle=lambda _: None)) == discovery.MAX_OFFERS


@pytest.mark.req("B-107")
def test_pauses_double_up_to_an_hour() -> None:
    assert [backoff_seconds(n) for n in (0, 1, 2, 3, 12, 13, 10_000)] == [1, 1, 2, 4, 2048, 3600, 3600]


def test_parallel_attempts_are_spaced() -> None:
    assert 3 <= discovery.ATTEMPT_SPACING_SECONDS <= 5
    assert discovery.ATTEMPT_STALL_SECONDS == 5
