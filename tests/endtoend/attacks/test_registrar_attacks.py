"""Attacks on the registrar by whoever reaches its device port, over TLS, against a running appliance."""

from __future__ import annotations

import base64
import contextlib
import http.client
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from asn1crypto import cms as asn1
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from brski import VoucherRequest, paths, voucher_request
from brski.idevid import read_serial_number
from brski.leaves import Assertion
from est.signer import Signer
from lab.certificates import Domain, Identity
from lab.damage import jws_with_mac, jws_with_unprotected_alg, jws_without_signature
from tests.endtoend.attacks.site import Knock, Line, Site, reason, sign

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("attacks")]
MALLORY = Domain.create("Mallory", now=datetime.now(UTC) - timedelta(hours=1))


@pytest.mark.req("T-04", "B-254", "B-223")
def test_t04_a_request_made_for_a_man_in_the_middle_is_401_and_the_connection_closes(site: Site) -> None:
    device = site.acme.device()
    for_mallory = site.knock(device).request(MALLORY.certificate)
    # the device's own connection, bent to the true registrar
    knock = site.knock(device)
    refused = knock.voucher(for_mallory)
    assert (refused.status, reason(refused)) == (401, "proximity-mismatch")
    assert knock.line.is_closed()
    # Mallory has no IDevID, so what he relays comes from nobody or from a device of his own
    other = site.acme.device()
    for relay, status in ((Line(site.address), 401), (Line(site.address, other), 403)):
        assert relay.send(for_mallory).status == status
        relay.close()
    assert site.acme.asked(knock.serial) == site.acme.asked(serial(other)) == 0
    (entry, *_) = site.audited("pledge-refused", knock.serial) or site.audited("voucher-refused", knock.serial)
    assert entry["reason"] == "proximity-mismatch"


@pytest.mark.req("T-13", "B-252")
def test_t13_a_request_signed_by_another_idevid_than_that_of_the_connection_is_refused(site: Site) -> None:
    device, other = site.acme.device(), site.acme.device()
    knock = site.knock(device)
    foreign = site.knock(other).request(knock.line.server)
    refused = knock.voucher(foreign)
    assert (refused.status, reason(refused)) == (403, "request-signer-foreign")
    assert site.acme.asked(serial(other)) == site.acme.asked(knock.serial) == 0
    assert knock.enroll().status == 403


@pytest.mark.req("T-14", "B-253")
def test_t14_a_request_for_another_serial_number_is_refused_and_logged(site: Site) -> None:
    device, other = site.acme.device(), site.acme.device()
    knock = site.knock(device)
    lie = VoucherRequest(
        serial_number=serial(other),
        nonce=base64.b64encode(secrets.token_bytes(16)).decode(),
        assertion=Assertion.PROXIMITY,
        proximity_registrar_cert=knock.line.server.public_bytes(Encoding.DER),
    )
    refused = knock.voucher(sign(voucher_request.write(lie), device))
    assert (refused.status, reason(refused)) == (403, "serial-number-mismatch")
    assert site.acme.asked(serial(other)) == site.acme.asked(knock.serial) == 0
    assert site.log_says("voucher-refused reason=serial-number-mismatch")
    assert site.audited("voucher-refused", knock.serial)


@pytest.mark.req("T-15", "B-234", "B-222")
def test_t15_a_request_repeated_a_hundred_times_while_it_waits_is_one_request_to_the_masa(
    own_site: Callable[..., Site],
) -> None:
    site = own_site("registrar.admission=manual", "web.address_rate=10000", "web.address_burst=10000")
    knock = site.knock(site.acme.device())
    asked = knock.request()
    for at in range(100):
        waiting = knock.voucher(asked)
        assert waiting.status == 202 and 1 <= int(waiting.headers["retry-after"]) <= 60, at
    assert site.acme.requests() == []
    site.campus.ask("pledges.admit", serial=knock.serial)
    granted = [knock.voucher(asked) for _ in range(5)]
    assert {one.status for one in granted} == {200}
    assert len({one.body for one in granted}) == 1
    assert site.acme.asked(knock.serial) == 1


@pytest.mark.req("T-22", "B-444")
@pytest.mark.parametrize("forge", [jws_without_signature, jws_with_mac, jws_with_unprotected_alg])
def test_t22_a_request_in_jws_whose_header_chooses_how_to_verify_is_refused(
    site: Site, forge: Callable[[bytes, Signer], bytes]
) -> None:
    knock = site.knock(site.acme.device())
    asked = knock.request(media_type=paths.VOUCHER_JWS_JSON)
    refused = knock.voucher(replace(asked, body=forge(asked.body, knock.device.signer)))
    assert (refused.status, reason(refused)) == (400, "voucher-request-malformed")
    assert site.acme.asked(knock.serial) == 0
    granted = knock.voucher(asked)
    assert (granted.status, granted.media_type) == (200, paths.VOUCHER_JWS_JSON)


@pytest.mark.req("T-23", "B-411", "B-427", "B-228")
def test_t23_bodies_that_are_too_large_too_deep_or_never_end_cost_a_4xx_and_no_memory(site: Site) -> None:
    knock = site.knock(site.acme.device())
    assert site.campus.process is not None
    process = psutil.Process(site.campus.process.popen.pid)
    good = knock.request()

    def send(body: bytes) -> int:
        """The status; 0 if the connection ended while the body still went out, and the answer with it."""
        line = Line(site.address, knock.device)
        try:
            return line.send(replace(good, body=body)).status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            line.close()

    crowd = tuple(site.acme.factory.make_device(f"c-{at}", now=datetime.now(UTC)).certificate for at in range(40))
    deep = b'{"ietf-voucher-request:voucher":' + b"[" * 2000 + b"]" * 2000 + b"}"
    for _ in range(5):
        line = Line(site.address, knock.device)
        head = f"POST {good.path} HTTP/1.1\r\nHost: x\r\nContent-Type: {good.media_type}\r\n"
        line.socket.sendall(f"{head}Content-Length: {10 << 20}\r\n\r\n".encode() + bytes(1 << 16))
        assert line.socket.recv(100).startswith(b"HTTP/1.1 413")
        with contextlib.suppress(OSError):
            line.socket.sendall(bytes(10 << 20))
        line.close()

    bad = {
        "300 KiB": (bytes(300 << 10), {413, 0}),
        "deep JSON": (sign(deep, knock.device).body, {400}),
        "forty certificates": (sign(b"{}", Identity(knock.device.key, crowd[0], crowd)).body, {400}),
        "a thousand certificates": (thousand_certificates(good.body), {400, 413, 0}),
        "half": (good.body[: len(good.body) // 2], {400}),
        "twice": (good.body * 2, {400}),
    }
    for body, _ in bad.values():
        send(body)
    before = process.memory_info().rss
    for _ in range(3):
        for what, (body, statuses) in bad.items():
            assert send(body) in statuses, what
    assert process.memory_info().rss - before < 8_000_000
    assert site.acme.asked(knock.serial) == 0
    assert site.knock(knock.device).bootstrap()  # its first connection may be too old by now


@pytest.mark.slow
@pytest.mark.req("T-23", "B-135")
def test_t23_a_body_that_drips_is_cut_off(site: Site) -> None:
    line = Line(site.address, site.acme.device())
    head = b"POST /.well-known/brski/requestvoucher HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n"
    line.socket.sendall(head + b"Content-Type: application/voucher-cms+json\r\n\r\n")
    begun = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - begun < 60:
            line.socket.sendall(b"0")
            line.socket.settimeout(1)
            try:
                got = line.socket.recv(100)
            except TimeoutError:
                continue
            assert got == b"" or got.startswith(b"HTTP/1.1 408")
            break
    assert time.monotonic() - begun < 45
    assert site.is_alive()


@pytest.mark.req("T-24", "B-158", "B-156")
def test_t24_no_connection_is_made_to_where_an_idevid_points_if_the_list_does_not_have_it(site: Site) -> None:
    with trap() as hits:
        refused = {}
        for where in (f"127.0.0.1:{hits.port}", f"localhost:{hits.port}", f"[::1]:{hits.port}",
                      f"https://127.0.0.1:{hits.port}/steal", "169.254.169.254:80", "[fe80::1]:443",
                      f"127.0.0.1:{site.acme.port + 1}", "masa.elsewhere.example:443"):  # fmt: skip
            knock = site.knock(site.acme.device(masa=where))
            refused[where] = knock.voucher()
            assert site.audited("voucher-refused", knock.serial), where
        assert {(one.status, reason(one)) for one in refused.values()} == {(403, "masa-not-allowed")}
        assert hits.count == 0
    assert site.log_says("voucher-refused reason=masa-not-allowed")


@pytest.mark.req("T-25", "B-149")
def test_t25_an_expired_idevid_is_taken_only_where_the_manufacturers_dates_are_ignored(site: Site) -> None:
    a_minute_ago = datetime.now(UTC) - timedelta(minutes=1)
    strict = site.knock(site.acme.device(not_after=a_minute_ago))
    refused = strict.voucher()
    assert refused.status in (403, 404) and site.acme.asked(strict.serial) == 0
    lenient = site.makers.get("aged") or site.add_maker("aged", ignore_expiry=True)
    knock = site.knock(lenient.device(not_after=a_minute_ago), lenient)
    assert knock.bootstrap()


@pytest.mark.req("T-26", "B-355", "B-371")
def test_t26_after_a_no_to_the_voucher_there_is_no_enrolment_on_that_connection(site: Site) -> None:
    knock = site.knock(site.acme.device())
    assert knock.voucher().status == 200
    assert knock.status(False).status == 200
    for _ in range(2):
        refused = knock.enroll()
        assert (refused.status, reason(refused)) == (403, "enrollment-not-open")
    # a yes that follows the no changes nothing, and a new connection of the device finds the same door shut
    knock.status(True)
    assert knock.enroll().status == 403
    again = site.knock(knock.device)
    assert again.enroll().status == 403
    assert not site.audited("ldevid-issued", knock.serial)


@pytest.mark.req("T-27", "B-359")
def test_t27_a_report_about_no_voucher_is_a_log_entry_only(site: Site) -> None:
    knock = site.knock(site.acme.device())
    assert knock.status(True).status == 200
    assert knock.enroll().status == 403
    with contextlib.suppress(Exception):  # either there is no record, or one that has not moved
        assert site.shown(knock.serial)["state"] in ("seen", "")
    nobody = Line(site.address)
    nobody.send(knock.pledge.voucher_status(True))
    # the way in is still the same
    assert knock.bootstrap()


@pytest.mark.req("T-34", "B-142")
@pytest.mark.parametrize(
    "name", ["garbage.invalid", "127.0.0.1", "registrar.example.com", "x" * 63 + "." + "y" * 63, "xn--nxasmq6b"]
)
def test_t34_whatever_stands_in_the_server_name_is_ignored(site: Site, name: str) -> None:
    plain = Line(site.address, site.acme.device())
    device = site.acme.device()
    knock = site.knock(device, name=name)
    assert knock.line.server == plain.server
    plain.close()
    assert knock.bootstrap()


@pytest.mark.req("T-35", "B-265")
def test_t35_two_devices_with_one_serial_number_of_two_makers_are_told_apart_everywhere(site: Site) -> None:
    other = site.makers.get("zenith") or site.add_maker("zenith")
    number = f"same-{secrets.token_hex(4)}"
    first = site.knock(site.acme.device(number))
    second = site.knock(other.device(number), other)
    first_ldevid, second_ldevid = first.bootstrap(), second.bootstrap()
    assert uris(first_ldevid) != uris(second_ldevid)
    rows = [row for row in site.campus.ask("pledges.list") if row["serial"] == number]
    assert {row["manufacturer"] for row in rows} == {"acme", "zenith"}
    assert len({row["proxy"] for row in rows}) == 2
    assert site.acme.asked(number) == other.asked(number) == 1
    # a no to the one is no no to the other
    third = site.knock(first.device)
    third.voucher()
    third.status(False)
    assert third.enroll().status == 403
    again = site.knock(second.device, other)
    assert again.bootstrap()


@pytest.mark.req("T-36")
def test_t36_a_flood_of_requests_by_one_device_or_by_many_does_not_reach_the_masa(
    own_site: Callable[..., Site],
) -> None:
    site = own_site("web.address_rate=1000", "web.address_burst=200")
    knock = site.knock(site.acme.device())
    answers = [knock.voucher() for _ in range(40)]
    limited = [one for one in answers if one.status == 429]
    assert len(limited) >= 15 and all(int(one.headers["retry-after"]) >= 1 for one in limited)
    assert site.acme.asked(knock.serial) <= 25
    # others are served meanwhile
    assert site.knock(site.acme.device()).bootstrap()


@pytest.mark.req("T-36")
def test_t36_a_flood_by_many_devices_of_one_address_ends_in_429(own_site: Callable[..., Site]) -> None:
    site = own_site("web.address_rate=1", "web.address_burst=30", "registrar.masa_concurrency=2")
    crowd = [site.knock(site.acme.device()) for _ in range(6)]
    statuses: list[int] = []

    def flood(knock: Knock) -> None:
        for _ in range(25):
            reply = knock.voucher()
            statuses.append(reply.status)
            if reply.headers.get("connection", "").lower() == "close":
                knock = site.knock(knock.device)

    threads = [threading.Thread(target=flood, args=(knock,)) for knock in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(statuses) == 150
    assert set(statuses) == {200, 429} and statuses.count(429) >= 100
    assert len(site.acme.requests()) == statuses.count(200) <= 50


# -- helpers


def thousand_certificates(body: bytes) -> bytes:
    """A signed request with a bag of a thousand certificates."""
    info = asn1.ContentInfo.load(body)
    bag = info["content"]["certificates"]
    info["content"]["certificates"] = asn1.CertificateSet([bag[0]] * 1000)
    return bytes(info.dump(force=True))


def serial(device: Identity) -> str:
    return read_serial_number(device.certificate)


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


class Trap:
    """A port that counts who connects."""

    def __init__(self) -> None:
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.port: int = self._sockets[0].getsockname()[1]
        with contextlib.suppress(OSError):
            self._sockets.append(socket.create_server(("::1", self.port), family=socket.AF_INET6))
        self.count = 0

    def look(self) -> None:
        for one in self._sockets:
            one.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                while True:
                    one.accept()[0].close()
                    self.count += 1

    def close(self) -> None:
        self.look()
        for one in self._sockets:
            one.close()


@contextlib.contextmanager
def trap() -> Iterator[Trap]:
    made = Trap()
    try:
        yield made
        made.look()
        assert made.count == 0
    finally:
        made.close()
