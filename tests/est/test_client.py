"""The client's half: what is sent, which certificates earn trust, what counts as a yes."""

from __future__ import annotations

import base64
from dataclasses import replace
from functools import cache

import pytest
from cryptography import x509

from est import CaCertificates, Call, EstClient, EstServer, Pending, Reply, csr, paths, profiles
from est.errors import EnrollmentRefused, ReplyNotAccepted
from tests.est.pki import CA, DAY, YEAR, campus, odd, sign, terms
from tests.support import NOW, key

CLIENT = EstClient()
SERVER = EstServer(labels=["lab"])
URI = "spiffe://campus.example/proxy/1"
SAN = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(URI)])
NAME = profiles.name("proxy 1")
DER = csr.build(subject=NAME, key=key("csr"), san=SAN)
PUBLIC = key("csr").public_key()


@cache
def issued(
    common_name: str = "proxy 1", identifier: str = URI, who: str = "csr", ca: str = "campus"
) -> x509.Certificate:
    return sign(
        profiles.ldevid(terms(campus(ca).ca), profiles.name(common_name), key(who).public_key(), identifier=identifier),
        key(f"{ca} ca"),
    )


def bag(*certificates: x509.Certificate) -> Reply:
    return SERVER.cacerts_reply(certificates, CLIENT.cacerts_call())


@pytest.mark.req("E-110", "E-127")
def test_both_halves_understand_each_other() -> None:
    for client, label in ((CLIENT, None), (EstClient(label="lab"), "lab")):
        assert SERVER.operation(client.cacerts_call()) == SERVER.operation(Call("GET", paths.path("cacerts", label)))
        trust = client.read_cacerts(bag(campus().root, campus().ca), at=NOW)
        for call, name in (
            (client.simpleenroll_call(DER), "simpleenroll"),
            (client.simplereenroll_call(DER), "simplereenroll"),
        ):
            operation = SERVER.operation(call)
            assert (operation.name, operation.label) == (name, label)
            ask = SERVER.read_enroll(call)
            assert ask.wrapped
            reply = SERVER.enroll_reply(issued(), ask)
            assert client.read_enrolled(reply, PUBLIC, csr_der=DER, trust=trust, at=NOW) == issued()


def test_requests_are_wrapped_base64_which_every_server_reads() -> None:
    call = CLIENT.simpleenroll_call(DER)
    assert call.media_type == "application/pkcs10"
    assert call.headers["content-transfer-encoding"] == "base64"
    assert max(map(len, call.body.splitlines())) == 64
    assert call.body.endswith(b"\n")
    assert base64.b64decode(call.body) == DER


@pytest.mark.req("E-95", "E-96")
def test_only_what_hangs_from_the_current_root_is_kept() -> None:
    world = campus()
    foreign = campus("second")
    read = CLIENT.read_cacerts(bag(world.ca, foreign.ca, world.root, world.proxy), at=NOW)
    assert read.root == world.root
    assert set(read.others) == {world.ca, world.proxy}
    assert read.anchors.certificates == (world.root,)


@pytest.mark.req("E-94", "E-95", "E-98")
def test_after_a_root_change_the_newest_root_rules_and_the_old_one_counts_through_it() -> None:
    old = campus().root
    new = odd("new root", key("new root"), key("new root"), extensions=[CA], not_before=NOW, not_after=NOW + 20 * YEAR)
    old_with_new = sign(
        replace(
            profiles.root_ca(
                old.subject,
                key("campus root").public_key(),
                serial=5,
                not_before=NOW,
                not_after=NOW + YEAR,
            ),
            issuer=new.subject,
        ),
        key("new root"),
    )
    read = CLIENT.read_cacerts(bag(old, new, old_with_new, campus().ca), at=NOW + DAY)
    assert read.root == new
    assert read.anchors.certificates == (new,)
    assert set(read.others) == {old, old_with_new, campus().ca}
    assert CLIENT.read_enrolled(
        SERVER.enroll_reply(issued(), SERVER.read_enroll(CLIENT.simpleenroll_call(DER))),
        PUBLIC,
        trust=read,
        at=NOW + DAY,
    )


@pytest.mark.req("E-90", "E-95")
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(bag(campus().ca), id="no root"),
        pytest.param(bag(odd("old", key("old"), key("old"), extensions=[CA], not_after=NOW - DAY / 2)), id="expired"),
        pytest.param(replace(bag(campus().root), media_type="text/html"), id="media type"),
        pytest.param(replace(bag(campus().root), body=b"<html>"), id="HTML"),
        pytest.param(replace(bag(campus().root), body=b""), id="empty"),
        pytest.param(bag(), id="no certificate"),
    ],
)
def test_ca_certificates_without_a_usable_root_are_refused(reply: Reply) -> None:
    with pytest.raises(ReplyNotAccepted):
        CLIENT.read_cacerts(reply, at=NOW)


@pytest.mark.req("E-90", "E-142")
@pytest.mark.parametrize("status", [204, 301, 302, 400, 401, 403, 404, 500, 503])
def test_everything_but_200_is_a_no_with_at_most_500_printable_characters(status: int) -> None:
    reply = Reply(status, "text/plain", {}, b"not\x1b[31m allowed\r\n" + b"x" * 5000 + b"\xff")
    for read in (lambda: CLIENT.read_cacerts(reply), lambda: CLIENT.read_enrolled(reply, PUBLIC)):
        with pytest.raises(EnrollmentRefused) as refusal:
            read()
        text = str(refusal.value.fields["text"])
        assert refusal.value.fields["status"] == status
        assert text.startswith("not[31m allowed") and text.isprintable() and len(text) == 500


@pytest.mark.req("E-125")
def test_our_certificate_is_found_by_its_key_wherever_it_stands() -> None:
    others = [campus().root, campus().ca, campus().proxy]
    reply = bag(*others, issued())
    assert CLIENT.read_enrolled(reply, PUBLIC) == issued()


@pytest.mark.req("E-125")
@pytest.mark.parametrize(
    "certificates",
    [
        pytest.param([campus().proxy], id="another key"),
        pytest.param([issued(), issued("proxy 2")], id="two for our key"),
        pytest.param([issued("proxy 2")], id="another subject"),
        pytest.param([issued(identifier="spiffe://campus.example/proxy/2")], id="another name"),
        pytest.param([issued(ca="second")], id="another CA"),
        pytest.param([odd("proxy 1", key("csr"), key("campus ca"), issuer=campus().ca)], id="name missing"),
    ],
)
def test_a_certificate_that_is_not_what_was_asked_for_is_refused(certificates: list[x509.Certificate]) -> None:
    trust = CaCertificates(campus().root, (campus().ca,))
    with pytest.raises(ReplyNotAccepted):
        CLIENT.read_enrolled(bag(*certificates), PUBLIC, csr_der=DER, trust=trust, at=NOW)


def test_an_expired_certificate_is_refused_only_with_a_clock() -> None:
    trust = CaCertificates(campus().root, (campus().ca,))
    assert CLIENT.read_enrolled(bag(issued()), PUBLIC, trust=trust) == issued()
    with pytest.raises(ReplyNotAccepted):
        CLIENT.read_enrolled(bag(issued()), PUBLIC, trust=trust, at=NOW + YEAR)


@pytest.mark.req("E-133")
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        ("0", 1),
        ("-7", 60),
        ("99999999", 86400),
        ("9" * 40, 60),
        ("soon", 60),
        (None, 60),
        ("Thu, 01 Jan 2026 12:02:00 GMT", 120),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 1),
    ],
)
def test_waiting_time_is_read_in_both_forms_and_bounded(value: str | None, seconds: int) -> None:
    reply = Reply(202, headers={} if value is None else {"retry-after": value})
    assert CLIENT.read_enrolled(reply, PUBLIC, at=NOW) == Pending(seconds)


def test_a_date_to_wait_for_needs_a_clock() -> None:
    reply = Reply(202, headers={"retry-after": "Thu, 01 Jan 2026 12:02:00 GMT"})
    assert CLIENT.read_enrolled(reply, PUBLIC) == Pending(60)


@pytest.mark.req("E-130", "E-131")
def test_the_servers_pending_reply_is_understood() -> None:
    assert CLIENT.read_enrolled(SERVER.pending_reply(30), PUBLIC) == Pending(30)
