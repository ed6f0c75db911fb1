"""EST over HTTPS against a running appliance: names at renewal, copied extensions, spellings of bodies."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.clock import SystemClock
from appliance.initialise import initialise
from appliance.registrar.admission import LDEVID
from appliance.settings import FILE_NAME
from appliance.store import Store, certificates
from est import csr, transfer
from est.chains import CMC_RA, aki_of
from est.cms import read_certs_only
from est.keys import spki_sha256
from lab.factory import Domain, make_leaf
from tests.campus import UNLIMITED, Answer, Campus, lookalike, write_identity

pytestmark = pytest.mark.xdist_group("est")  # one campus for the whole module
ENROLL, REENROLL = "/.well-known/est/simpleenroll", "/.well-known/est/simplereenroll"
PKCS10 = "application/pkcs10"
SAN = x509.SubjectAlternativeName
URI = x509.UniformResourceIdentifier
DISTRIBUTION_POINTS = x509.CRLDistributionPoints(
    [x509.DistributionPoint([URI("http://crl.example/x.crl")], None, None, None)]
)
USAGES = (
    "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
    "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
)  # fmt: skip

Key = ec.EllipticCurvePrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def san_of(certificate: x509.Certificate) -> SAN:
    return certificate.extensions.get_extension_for_class(SAN).value


def text_of(answer: Answer) -> str:
    """The line of a refusal without its reason and request id; asserts that it is such a line."""
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    found = re.fullmatch(r"[a-z0-9-]+: (.+) \(request [0-9a-f]{16}\)\n", answer.body.decode())
    assert found is not None, answer
    return found[1]


def issued_in(answer: Answer) -> x509.Certificate:
    assert answer.status == 200, answer
    (found,) = read_certs_only(transfer.read_base64(answer.body))
    return found


@dataclass(frozen=True)
class Holder:
    """Somebody with a certificate and its key."""

    campus: Campus
    certificate: x509.Certificate
    key: Key
    chain: tuple[x509.Certificate, ...] = ()

    def ask(self, body: bytes, *, path: str = REENROLL, media_type: str = PKCS10) -> Answer:
        files = write_identity(self.campus.folder / "holders", [self.certificate, *self.chain], self.key)
        with closing(self.campus.client("device", *files)) as client:
            return client.send("POST", path, body, media_type)

    def request(self, **changed: object) -> bytes:
        """A new key with the names of this certificate, or with others."""
        names = {"subject": self.certificate.subject, "san": san_of(self.certificate), "key": new_key()}
        return csr.build(**{**names, **changed})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Site:
    """A running appliance with a proxy of which it issued one certificate itself, and two were put among its own."""

    campus: Campus
    proxy: Holder
    two_names: Holder
    expired: Holder

    def enrol(self, name: str, **asked: object) -> Answer:
        secret = base64.b64encode(self.campus.ask("est.secret", name=name)["credentials"].encode()).decode()
        der = csr.build(**{"subject": x509.Name([]), "key": new_key(), **asked})  # type: ignore[arg-type]
        with closing(self.campus.client()) as client:
            return client.send("POST", ENROLL, base64.b64encode(der), PKCS10, {"Authorization": f"Basic {secret}"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    campus = Campus(tmp_path_factory.mktemp("est"))
    initialise(
        campus.home, SystemClock(), trust_domain="campus.example", organization="Example University",
        assignments=("registrar.announce=false",),
    )  # fmt: skip
    with (campus.home / FILE_NAME).open("a") as file:
        file.write("[est.labels.lab]\nlife_days = 7\n")
    try:
        campus.start(*UNLIMITED)
        nobody = Site(campus, *[None] * 3)  # type: ignore[arg-type]
        key = new_key()
        first = issued_in(nobody.enrol("proxy-1", key=key))
        assert campus.stop() == 0
        proxy = Holder(campus, first, key)
        now = datetime.now(UTC).replace(microsecond=0)
        two = SAN([*san_of(first), x509.DNSName("proxy.example")])
        issued = (
            issued_like(campus, first, key, san=two, until=first.not_valid_after_utc),
            issued_like(campus, first, key, san=san_of(first), until=now - timedelta(minutes=1)),
        )
        campus.start(*UNLIMITED)
        yield Site(campus, proxy, *(Holder(campus, one, key) for one in issued))
    finally:
        campus.close()


def issued_like(campus: Campus, real: x509.Certificate, key: Key, *, san: SAN, until: datetime) -> x509.Certificate:
    """A certificate that the appliance knows as its own, with names or an end that it would not give."""
    serial = x509.random_serial_number()
    builder = (
        x509.CertificateBuilder(real.issuer, real.subject, key.public_key(), serial)
        .not_valid_before(min(real.not_valid_before_utc, until - timedelta(days=1)))
        .not_valid_after(until)
    )
    for one in real.extensions:
        builder = builder.add_extension(san if one.oid == SAN.oid else one.value, one.critical)
    made = builder.sign(campus.key_of("devices"), hashes.SHA256())
    der = made.public_bytes(Encoding.DER)
    (identifier,) = san.get_values_for_type(URI)
    names = {"profile": LDEVID, "subject_id": identifier, "proxy_id": identifier.rpartition("/")[2]}
    row = certificates.Pending(
        "devices", aki_of(real) or b"", made.serial_number, hashlib.sha256(made.tbs_certificate_bytes).digest(),
        spki_sha256(made), made.not_valid_before_utc, until, names,
    )  # fmt: skip
    store = Store.open(f"sqlite:///{campus.home / 'appliance.db'}", SystemClock())
    try:
        digest = hashlib.sha256(der).digest()
        asyncio.run(store.write(lambda tx: certificates.issue(tx, certificates.add(tx, row), der, digest)))
    finally:
        store.close()
    return made


NOT_MINE = URI("spiffe://campus.example/proxy/00000000-0000-4000-8000-000000000000")


@pytest.mark.req("E-117", "E-118", "E-138")
def test_renewal_with_other_names_or_a_certificate_that_is_none_is_refused_each_with_its_own_text(site: Site) -> None:
    proxy, two = site.proxy, site.two_names
    revoked = Holder(site.campus, issued_in(proxy.ask(proxy.request(key=proxy.key))), proxy.key)
    site.campus.ask("certs.revoke", serial=format(revoked.certificate.serial_number, "x"), issuer="devices")
    chain, forged_key = lookalike(proxy.certificate, site.campus.certificates_of("devices")[0])
    forged = Holder(site.campus, chain[0], forged_key, tuple(chain[1:]))
    other = Domain.create(now=datetime.now(UTC))
    stranger = make_leaf(other.ca, proxy.certificate.subject, now=datetime.now(UTC))
    foreign = Holder(site.campus, stranger.certificate, stranger.key, stranger.issuers)
    server = Holder(site.campus, site.campus.certificates_of("registrar")[0], site.campus.key_of("registrar"))
    refused = {
        "other CN": proxy.ask(proxy.request(subject=x509.Name.from_rfc4514_string("CN=proxy 2"))),
        "other SAN": proxy.ask(proxy.request(san=SAN([NOT_MINE]))),
        "one more SAN": proxy.ask(proxy.request(san=SAN([*san_of(proxy.certificate), x509.DNSName("x.example")]))),
        "no SAN": proxy.ask(proxy.request(san=None)),
        "reordered SAN": two.ask(two.request(san=SAN(list(san_of(two.certificate))[::-1]))),
        "expired": site.expired.ask(site.expired.request()),
        "revoked": revoked.ask(revoked.request()),
        "forged": forged.ask(forged.request()),
        "foreign": foreign.ask(proxy.request()),
        "no proxy's": server.ask(server.request()),
        "another label's": proxy.ask(proxy.request(), path="/.well-known/est/lab/simplereenroll"),
    }  # fmt: skip
    assert {name: (answer.status, text_of(answer)) for name, answer in refused.items()} == {
        "other CN": (403, "the subject is not that of the certificate being renewed"),
        "other SAN": (403, "subjectAltName is not that of the certificate being renewed"),
        "one more SAN": (403, "subjectAltName is not that of the certificate being renewed"),
        "no SAN": (403, "subjectAltName of the certificate being renewed is missing"),
        "reordered SAN": (
            403, "the names in subjectAltName are in another order than in the certificate being renewed"
        ),
        "expired": (403, "the certificate does not hold: the certificate or its chain is not valid at this time"),
        "revoked": (403, "the certificate is revoked"),
        "forged": (403, "the certificate does not hold: no path from the certificate to a trust anchor"),
        "foreign": (403, "renewal needs a certificate that this domain issued to an identity proxy"),
        "no proxy's": (403, "the certificate is no identity proxy's"),
        "another label's": (403, "this client belongs to another EST label"),
    }  # fmt: skip
    # the very same requests are fine where nothing is wrong
    issued_in(proxy.ask(proxy.request()))
    issued_in(two.ask(two.request()))


@pytest.mark.req("E-113", "E-114")
def test_a_request_with_every_extension_of_a_certificate_is_granted_and_its_extensions_are_not_echoed(
    site: Site,
) -> None:
    old = site.proxy.certificate
    usage = x509.KeyUsage(**{**dict.fromkeys(USAGES, False), "digital_signature": True, "key_encipherment": True})
    both = (x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH)
    purposes = x509.ExtendedKeyUsage(both)
    private = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.7"), b"\x05\x00")
    copied = [one.value for one in old.extensions if one.oid != SAN.oid]
    altered = [one for one in copied if not isinstance(one, x509.KeyUsage | x509.ExtendedKeyUsage)]
    for asked in (copied, [*altered, usage, purposes, DISTRIBUTION_POINTS, private]):
        got = issued_in(site.proxy.ask(site.proxy.request(extensions=asked)))
        assert {one.oid for one in got.extensions} == {one.oid for one in old.extensions}
        for kind in (x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.AuthorityKeyIdentifier, SAN):
            ours, theirs = (one.extensions.get_extension_for_class(kind) for one in (got, old))
            assert (ours.value, ours.critical) == (theirs.value, theirs.critical)
        key_identifier = got.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert key_identifier == x509.SubjectKeyIdentifier.from_public_key(got.public_key())


@pytest.mark.req("E-57", "E-113", "E-115")
def test_a_request_for_authority_or_for_the_opposite_is_refused_by_name_and_costs_no_secret(site: Site) -> None:
    ca = x509.BasicConstraints(ca=True, path_length=None)
    signs = x509.KeyUsage(**{**dict.fromkeys(USAGES, False), "key_cert_sign": True})
    ra = x509.ExtendedKeyUsage([x509.ObjectIdentifier(CMC_RA)])
    # a key that must not sign, a purpose that is not a client's (RFC 5272, section 3.1), and somebody's owner
    enciphers = x509.KeyUsage(**{**dict.fromkeys(USAGES, False), "key_encipherment": True})
    serves = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH])
    owner = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.32473.2026.1.2"), b"\x0c\x01x")
    asked = (ca, signs, ra, enciphers, serves, owner)
    refused = [site.proxy.ask(site.proxy.request(extensions=[one])) for one in asked]
    refused += [site.enrol("ambitious", extensions=[one]) for one in asked]
    texts = [
        "a CA certificate is not given on request",
        "a CA's key usage is not given on request",
        "the cmcRA purpose is not given on request",
        "certificates here are for digital signatures, which the requested keyUsage leaves out",
        "certificates here are for TLS clients, which the requested extendedKeyUsage leaves out",
        "the binding to an owner is not given on request",
    ]
    assert [(answer.status, text_of(answer)) for answer in refused] == [(400, text) for text in texts * 2]
    assert "ambitious" not in {row["name"] for row in site.campus.ask("proxies.list")}


@pytest.mark.req("E-21", "E-22", "E-24", "E-27", "E-111", "E-140", "E-201")
def test_every_spelling_of_a_request_is_read_and_everything_else_is_refused(site: Site) -> None:
    proxy = site.proxy

    def spelled(der: bytes) -> dict[str, bytes]:
        line, wrapped = base64.b64encode(der), base64.encodebytes(der)
        return {
            "one line": line,
            "LF": wrapped,
            "CRLF": wrapped.replace(b"\n", b"\r\n"),
            "spaces": b" ".join(line[at : at + 10] for at in range(0, len(line), 10)),
            "tabs": wrapped.replace(b"\n", b"\n\t"),
            "PEM": armoured(wrapped, "CERTIFICATE REQUEST"),
            "old PEM": armoured(wrapped, "NEW CERTIFICATE REQUEST"),
            "PEM, CRLF": armoured(wrapped, "CERTIFICATE REQUEST").replace(b"\n", b"\r\n"),
            "DER": der,
        }

    for how in spelled(b"0"):
        der = proxy.request()
        got = issued_in(proxy.ask(spelled(der)[how]))
        assert got.public_key() == csr.read(der).public_key, how

    der = next(one for one in iter(proxy.request, b"") if len(one) % 3)  # its base64 is padded
    line, wrapped = base64.b64encode(der), base64.encodebytes(der)
    no_base64, one_pem = "the body is not base64", "PEM armour is not that of one certificate request"
    refused = {
        "two": (line + line, no_base64),
        "two lines": (wrapped + wrapped, no_base64),
        "two in PEM": (armoured(wrapped, "CERTIFICATE REQUEST") * 2, one_pem),
        "two in DER": (der + der, "bytes after the DER object"),
        "a certificate in PEM": (armoured(wrapped, "CERTIFICATE"), one_pem),
        "padding missing": (line.rstrip(b"="), no_base64),
        "padding too long": (line + b"=", no_base64),
        "a foreign byte": (line[:40] + b"*" + line[41:], no_base64),
        "base64url": (line[:40] + b"-_" + line[42:], no_base64),
        "a high byte": (line[:40] + b"\xff" + line[41:], no_base64),
        "a NUL": (line + b"\0", no_base64),
        "something after the request": (base64.b64encode(der + b"\0"), "bytes after the DER object"),
        "empty": (b"", "the body is empty"),
        "white space": (b" \r\n\t", "the body is empty"),
    }
    answers = {name: proxy.ask(body) for name, (body, _) in refused.items()}
    assert {name: (answer.status, text_of(answer)) for name, answer in answers.items()} == {
        name: (400, text) for name, (_, text) in refused.items()
    }
    full = line + b"\n" * (65_536 - len(line))
    issued_in(proxy.ask(full))
    too_large = proxy.ask(full + b"\n")
    assert (too_large.status, text_of(too_large)) == (413, "the body is too large")
    assert [proxy.ask(line, media_type=kind).status for kind in ("", "application/json")] == [415, 415]


def armoured(wrapped: bytes, kind: str) -> bytes:
    return f"-----BEGIN {kind}-----\n".encode() + wrapped + f"-----END {kind}-----\n".encode()
