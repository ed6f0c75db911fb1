"""Pledges that share no code with us, against `appliance run` and the lab's MASA, each in its own process."""

from __future__ import annotations

import base64
import hmac
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from appliance.clock import SystemClock
from appliance.initialise import initialise
from brski import paths, voucher, voucher_request
from est import jose
from tests.campus import Campus, environment

HERE = Path(__file__).parent
STRICT = ("registrar.accept_id_data=false", "registrar.accept_nonceless=false")

pytestmark = [pytest.mark.interop, pytest.mark.lab]


def run(*command: str | Path, fails: bool = False) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=120, env=environment(), check=False
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done


def need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@dataclass
class Site:
    """A running campus that knows a manufacturer, whose MASA runs too."""

    campus: Campus
    masa: str

    @property
    def registrar(self) -> str:
        return self.campus.listeners["device"]

    @property
    def maker(self) -> Path:
        return self.campus.folder / "makers" / "acme"

    @property
    def anchors(self) -> Path:
        return self.maker / "manufacturer" / "masa-anchors.pem"

    def device(self, serial: str) -> Path:
        """A device whose key and IDevID openssl made; the MASA has sold it because its IDevID lies there."""
        need("openssl")
        home, folder = self.maker / "manufacturer", self.maker / "devices" / serial
        run(HERE / "openssl_device.sh", serial, self.masa, home / "device-ca.pem", home / "device-ca.key.pem", folder)
        return folder

    def timeline(self, serial: str) -> list[str]:
        return [step["step"] for step in self.campus.ask("pledges.show", serial=serial)["timeline"]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    campus = Campus(tmp_path_factory.mktemp("foreign"))
    initialise(
        campus.home,
        SystemClock(),
        trust_domain="campus.example",
        organization="Example University",
        assignments=("registrar.announce=false",),
    )
    campus.start(*STRICT)
    try:
        campus.masa("acme-0001")
        row = campus.ask("manufacturers.list")[0]
        yield Site(campus, row["masa_url"].removeprefix("https://"))
    finally:
        campus.close()


@pytest.mark.req(
    "B-133", "B-201", "B-202", "B-221", "B-241", "B-251", "B-252", "B-254", "B-321", "B-327", "B-371", "B-402", "B-412"
)
def test_a_pledge_made_of_openssl_and_curl_gets_a_voucher_and_an_ldevid(site: Site, tmp_path: Path) -> None:
    need("curl")
    device = site.device("widget-1")
    done = run(
        HERE / "openssl_pledge.sh",
        site.registrar,
        device / "idevid.pem",
        device / "idevid.key.pem",
        site.anchors,
        tmp_path / "work",
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("asking: serial widget-1, nonce ")
    assert lines[1].startswith("voucher: proximity, pins ")
    assert "URI:spiffe://campus.example/proxy/" in lines[2] and lines[3] == "done"
    # what it sent and got keeps to the strict profile
    work = tmp_path / "work"
    sent, opened = voucher_request.unseal((work / "pvr.cms").read_bytes(), paths.VOUCHER_CMS_JSON, accept_id_data=False)
    got, _ = voucher.unseal((work / "voucher.cms").read_bytes(), paths.VOUCHER_CMS_JSON, accept_id_data=False)
    assert got.nonce == sent.nonce
    assert opened.signer == x509.load_pem_x509_certificates((device / "idevid.pem").read_bytes())[0]
    assert "voucher-granted" in site.timeline("widget-1")
    assert site.campus.ask("pledges.show", serial="widget-1")["state"] == "confirmed"


@pytest.mark.req("B-321", "B-328", "B-355", "T-06")
def test_the_openssl_pledge_refuses_a_voucher_of_somebody_else_and_says_so(site: Site, tmp_path: Path) -> None:
    need("curl")
    device = site.device("widget-2")
    stranger = site.maker / "manufacturer" / "masa-tls-ca.pem"
    done = run(
        HERE / "openssl_pledge.sh",
        site.registrar,
        device / "idevid.pem",
        device / "idevid.key.pem",
        stranger,
        tmp_path / "work",
        fails=True,
    )
    assert "refused: voucher-signature-invalid" in done.stderr
    shown = site.campus.ask("pledges.show", serial="widget-2")
    assert shown["state"] not in ("enrolled", "confirmed") and "voucher-rejected" in site.timeline("widget-2")


@pytest.mark.req("B-251", "B-256")
def test_a_device_of_a_stranger_gets_nothing(site: Site, tmp_path: Path) -> None:
    need("curl", "openssl")
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "9",
        "-subj", "/CN=Stranger CA", "-keyout", tmp_path / "ca.key.pem", "-out", tmp_path / "ca.pem",
    )  # fmt: skip
    device = tmp_path / "device"
    run(HERE / "openssl_device.sh", "widget-3", site.masa, tmp_path / "ca.pem", tmp_path / "ca.key.pem", device)
    done = run(
        HERE / "openssl_pledge.sh",
        site.registrar,
        device / "idevid.pem",
        device / "idevid.key.pem",
        site.anchors,
        tmp_path / "work",
        fails=True,
    )
    assert "refused: requestvoucher: 403" in done.stderr


@pytest.mark.req("B-201", "B-202", "B-211", "B-441", "B-442", "B-443", "B-445", "B-447")
def test_a_pledge_whose_jws_are_joserfcs_alone_gets_a_voucher(site: Site, tmp_path: Path) -> None:
    device = site.device("widget-4")
    host, _, port = site.registrar.rpartition(":")
    done = run(
        sys.executable,
        "-I",
        HERE / "joserfc_pledge.py",
        host,
        port,
        device / "idevid.pem",
        device / "idevid.key.pem",
        site.anchors,
        tmp_path,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("asking: serial widget-4") and lines[1].startswith("voucher: proximity, pins ")
    assert lines[2] == "done"
    sent, _ = voucher_request.unseal((tmp_path / "pvr.vjj").read_bytes(), paths.VOUCHER_JWS_JSON)
    got, _ = voucher.unseal((tmp_path / "voucher.vjj").read_bytes(), paths.VOUCHER_JWS_JSON)
    assert got.nonce == sent.nonce
    assert site.campus.ask("pledges.show", serial="widget-4")["assertion"] == "proximity"


@pytest.mark.req("B-444", "B-445", "T-22")
@pytest.mark.parametrize("trick", ["none", "mac", "unprotected", "der", "second"])
def test_forged_jws_over_a_real_connection_is_400_and_reaches_no_masa(site: Site, trick: str) -> None:
    device = site.device(f"forger-{trick}")
    chain = x509.load_pem_x509_certificates((device / "idevid.pem").read_bytes())
    key = load_pem_private_key((device / "idevid.key.pem").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    header = {"alg": "ES256", "x5c": [base64.b64encode(chain[0].public_bytes(Encoding.DER)).decode()]}
    content = json.dumps({"ietf-voucher-request:voucher": {"serial-number": f"forger-{trick}"}}).encode()

    def signed(header: dict[str, object], make: Callable[[bytes], bytes]) -> dict[str, object]:
        protected = jose.base64url(json.dumps(header).encode())
        data = f"{protected}.{jose.base64url(content)}".encode()
        return {"protected": protected, "signature": jose.base64url(make(data))}

    def der(data: bytes) -> bytes:
        return key.sign(data, ec.ECDSA(hashes.SHA256()))

    def raw(data: bytes) -> bytes:
        return jose.write_ecdsa(der(data), 32)

    alone = {name: value for name, value in header.items() if name != "alg"}
    signatures = {
        "none": [signed({**header, "alg": "none"}, lambda data: b"")],
        "mac": [signed({**header, "alg": "HS256"}, lambda data: hmac.digest(public, data, "sha256"))],
        "unprotected": [{**signed(alone, raw), "header": {"alg": "ES256"}}],
        "der": [signed(header, der)],
        "second": [signed(header, raw), signed(header, raw)],
    }[trick]
    body = json.dumps({"payload": jose.base64url(content), "signatures": signatures}).encode()
    client = site.campus.client("device", device / "idevid.pem", device / "idevid.key.pem")
    answer = client.send("POST", paths.REQUEST_VOUCHER, body, paths.VOUCHER_JWS_JSON)
    client.close()
    assert answer.status == 400, answer
    assert [one["step"] for one in site.campus.ask("pledges.show", serial=f"forger-{trick}")["timeline"]] == [
        "request-refused"
    ]
