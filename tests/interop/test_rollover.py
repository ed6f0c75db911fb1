"""A new root, rehearsed with foreign clients that hold one of the two roots alone (est.md, section 15, line 7)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.access.raddb_folder import default_folder, run_as
from appliance.settings import RadiusSettings
from est.certificates import aki_of, is_self_signed, ski_of
from est.keys import spki
from tests.interop.est_clients import BouncyCastle, Curl, Site, StrongSwan, need, openssl_key, openssl_request, run

pytestmark = [pytest.mark.interop, pytest.mark.lab, pytest.mark.slow, pytest.mark.xdist_group("est-clients")]


def swan_cacerts(site: Site, folder: Path) -> list[x509.Certificate]:
    """What pki takes for trusted of what cacerts gave it, written to NAME.pem, NAME-1.pem, ..."""
    StrongSwan.require()
    done = run(
        "pki", "--estca", "--url", f"https://{site.address}", "--cacert", site.root,
        "--caout", folder / "ca.pem", "--outform", "pem",
    )  # fmt: skip
    told = done.stderr.decode()
    trusted = [line.rpartition("'")[0].rpartition("'")[2] for line in told.splitlines() if " cert is trusted" in line]
    return [x509.load_pem_x509_certificate(Path(file).read_bytes()) for file in trusted]


def swan_enroll(site: Site, folder: Path, csr: Path, credentials: str, out: Path) -> None:
    options = folder / "pki-options"
    options.write_text(f"--userpass {credentials}\n")
    known = [word for file in sorted(folder.glob("ca*.pem")) for word in ("--cacert", file)]
    done = run(
        "pki", "--est", "--url", f"https://{site.address}", "--cacert", site.root, *known, "--in", csr,
        "--options", options, "--interval", "1", "--outform", "pem",
    )  # fmt: skip
    assert "not trusted" not in done.stderr.decode()
    out.write_bytes(done.stdout)


def java_cacerts(site: Site, folder: Path) -> list[x509.Certificate]:
    client = BouncyCastle(site, folder)
    try:
        return client.cacerts("1.3", folder)[1]
    finally:
        client.close()


def java_enroll(site: Site, folder: Path, csr: Path, credentials: str, out: Path) -> None:
    client = BouncyCastle(site, folder)
    try:
        client.enroll("1.3", csr, credentials, out)
    finally:
        client.close()


def curl_cacerts(site: Site, folder: Path) -> list[x509.Certificate]:
    return Curl(site, folder).cacerts("1.3", folder)[1]


def curl_enroll(site: Site, folder: Path, csr: Path, credentials: str, out: Path) -> None:
    Curl(site, folder).enroll("1.3", csr, credentials, out)


CLIENTS = {
    "strongswan": (StrongSwan.require, swan_cacerts, swan_enroll),
    "bouncycastle": (BouncyCastle.require, java_cacerts, java_enroll),
    "curl": (Curl.require, curl_cacerts, curl_enroll),
}
Fetch = Callable[[Site, Path], list[x509.Certificate]]
Enroll = Callable[[Site, Path, Path, str, Path], None]


@pytest.mark.req("E-100", "E-102")
@pytest.mark.parametrize("name", CLIENTS)
def test_clients_with_one_root_alone_get_through_the_change(name: str, tmp_path: Path) -> None:
    require: Callable[[], None] = CLIENTS[name][0]
    fetch: Fetch = CLIENTS[name][1]
    enroll: Enroll = CLIENTS[name][2]
    require()
    need("openssl", "openssl")
    site = Site.start(tmp_path)
    campus = site.campus
    try:
        old = campus.certificates_of("root")[0]
        folders = {state: tmp_path / state for state in ("before", "published", "signing", "retired")}
        for folder in folders.values():
            folder.mkdir()

        def enrolled(site: Site, folder: Path, who: str) -> x509.Certificate:
            key, csr, out = folder / f"{who}.key", folder / f"{who}.csr", folder / f"{who}.crt"
            openssl_key("small", key)
            openssl_request(key, csr, "/CN=new proxy")
            enroll(site, folder, csr, site.credentials(f"{name}-{folder.name}"), out)
            return x509.load_pem_x509_certificate(out.read_bytes())

        fetch(site, folders["before"])
        early = enrolled(site, folders["before"], "early")
        time.sleep(1.1)  # a new root must live longer, and dates have whole seconds
        campus.ask("ca.rollover_start", role="root")
        campus.ask("ca.rollover_advance", role="root")

        # published: the old one signs and serves; whoever was given the new root alone accepts it by OldWithNew
        handed = Curl(site, tmp_path).cacerts("1.3", tmp_path)[1]
        new = next(one for one in handed if is_self_signed(one) and one != old)
        only_new = replace(site, root=tmp_path / "new.pem")
        only_new.root.write_bytes(new.public_bytes(Encoding.PEM))
        got = fetch(only_new, folders["published"])
        old_with_new = next(one for one in got if spki(one) == spki(old) and aki_of(one) == ski_of(new))
        served = enrolled(only_new, folders["published"], "with-new")
        assert aki_of(served) == aki_of(early)

        # the old end entity with the link, under the new root alone, by openssl's own judgement
        (tmp_path / "early.pem").write_bytes(early.public_bytes(Encoding.PEM))
        link = b"".join(
            one.public_bytes(Encoding.PEM) for one in (*campus.certificates_of("devices")[:1], old_with_new)
        )
        (tmp_path / "link.pem").write_bytes(link)
        run(
            "openssl", "verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile", only_new.root,
            "-untrusted", tmp_path / "link.pem", tmp_path / "early.pem",
        )  # fmt: skip

        # signing: the new one signs and serves; the old root alone leads to the new key by NewWithOld, and to enrolment
        campus.ask("ca.rollover_advance", role="root")
        got = fetch(site, folders["signing"])
        assert any(spki(one) == spki(new) and aki_of(one) == ski_of(old) for one in got), "NewWithOld"
        assert aki_of(enrolled(site, folders["signing"], "with-old")) == aki_of(early)

        # retired: the new root alone is left
        campus.ask("ca.rollover_advance", role="root", force=True)
        got = fetch(only_new, folders["retired"])
        assert new in got and old not in got and len(got) == 2
        enrolled(only_new, folders["retired"], "after")
    finally:
        campus.stop()


@pytest.mark.req("E-103")
def test_a_freeradius_that_the_appliance_runs_follows_the_states(tmp_path: Path) -> None:
    need("freeradius freeradius-rest", "freeradius")
    site = Site.start(tmp_path, "radius.engine=freeradius")
    campus = site.campus
    certs = default_folder(campus.home, run_as(RadiusSettings().user)) / "certs"

    def held(file: str) -> list[x509.Certificate]:
        return x509.load_pem_x509_certificates((certs / file).read_bytes())

    def restarts() -> int:
        logs = (one.read_text(errors="replace") for one in (tmp_path / "logs").iterdir())
        return sum(log.count("Ready to process requests") for log in logs)

    def follows(before: int, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not (is_so() and restarts() > before):
            assert time.monotonic() < deadline
            time.sleep(0.1)

    try:
        (old,) = held("client-cas.pem")
        for role in ("agents", "infrastructure"):
            campus.ask("ca.rollover_start", role=role)
        assert held("client-cas.pem") == [old]
        before = restarts()
        campus.ask("ca.rollover_advance", role="agents")
        follows(before, lambda: len(held("client-cas.pem")) == 2 and old in held("client-cas.pem"))
        served, before = held("server.pem"), restarts()
        for _ in range(2):
            campus.ask("ca.rollover_advance", role="infrastructure")
        follows(before, lambda: held("server.pem")[0] != served[0])
        leaf, issuer = held("server.pem")
        assert issuer != served[1]
        leaf.verify_directly_issued_by(issuer)
        before = restarts()
        for _ in range(2):
            campus.ask("ca.rollover_advance", role="agents", force=True)
        follows(before, lambda: len(held("client-cas.pem")) == 1 and old not in held("client-cas.pem"))
        assert campus.ask("radius.check")["ok"]
    finally:
        campus.stop()
