"""Every route against everybody: what one caller may do, with the very same bytes nobody else may.

The requests are good ones. Whoever has no business at a route gets a refusal of its own kind, and never an answer that
only looks like one (CVE-2026-30836 of a peer: a message type that was recognised, not handled, and let through).
"""

from __future__ import annotations

import json
import re
import ssl
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.audit import APPLIANCE
from appliance.binding import composite, jws
from appliance.ca import revoke
from appliance.clock import SystemClock
from appliance.owner.client_key import gateway_keygen
from appliance.settings import load_settings
from appliance.store.store import Store
from appliance.web.routes import OPTIONAL, ROUTES
from brski import Pledge
from est import chains, csr, transfer
from est.chains import TrustAnchors
from est.signer import KeySigner
from tests.campus import ORIGIN, UNLIMITED, Answer, Ask, Campus, Client, new_ask
from tests.endtoend import visitors
from tests.endtoend.visitors import an_agent, clients, spare_key

pytestmark = pytest.mark.xdist_group("access-matrix")  # one campus for the whole module
Send = Callable[[Client], Answer]
PKCS10 = "application/pkcs10"
EST = "/.well-known/est"
BRSKI = "/.well-known/brski"
REFUSED = {401, 403, 404, 409}


@dataclass(frozen=True)
class Place:
    """A campus with everybody in front of it."""

    campus: Campus
    files: Mapping[str, tuple[Path, Path] | None]
    visitors: Mapping[str, Client]
    finished: Ask
    decision_token: str
    agent: x509.Certificate


@pytest.fixture(scope="module")
def place(campus: Campus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("visitors")
    files = visitors.certificates(campus, folder)
    finished, _ = an_agent(campus)
    campus.ask("radius.render", folder=str(folder / "raddb"))
    rendered = "\n".join(path.read_text() for path in (folder / "raddb").rglob("*") if path.is_file())
    (token,) = set(re.findall(r"[Bb]earer ([A-Za-z0-9_-]{20,})", rendered))
    chain = files["agent"]
    assert chain is not None
    agent = x509.load_pem_x509_certificates(chain[0].read_bytes())[0]
    everybody = clients(campus, files)
    yield Place(campus, files, everybody, finished, token, agent)
    for one in everybody.values():
        one.close()


def reenroll(subject: x509.Name, san: x509.SubjectAlternativeName | None) -> bytes:
    return transfer.write_base64(csr.build(subject=subject, key=spare_key(), san=san), wrapped=None)


def san_of(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def good_requests(place: Place) -> Mapping[str, tuple[Send, frozenset[str]]]:
    """By endpoint: a request that is right in every byte, and who may make it."""
    campus = place.campus
    old = campus.ldevid
    fresh = new_ask(campus, campus.as_proxy(), campus.owner()).body()
    nonce = json.dumps({"jkt": jws.jkt(spare_key().public_key()), "purpose": "issue"}).encode()
    status = json.dumps({"version": 1, "status": True, "reason": "fine", "reason-context": {}}).encode()
    device = campus.device()
    idevid = x509.load_pem_x509_certificates((device / "idevid.pem").read_bytes())
    key = load_pem_private_key((device / "idevid.key.pem").read_bytes(), None)
    server = campus.certificates_of("registrar")[0]
    anchors = TrustAnchors(x509.load_pem_x509_certificates((device / "masa-anchors.pem").read_bytes()))
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    pledge = Pledge(KeySigner(key), idevid, anchors)
    pvr = pledge.voucher_request(server, nonce=b"n" * 16, now=datetime.now(UTC))

    def send(method: str, path: str, body: bytes = b"", media_type: str = "") -> Send:
        return lambda client: client.send(method, path, body, media_type)

    everybody = frozenset(place.visitors)
    return {
        "est.cacerts": (send("GET", f"{EST}/cacerts"), everybody),
        "registrar.csrattrs": (send("GET", f"{EST}/csrattrs"), everybody),
        "est.simpleenroll": (
            send("POST", f"{EST}/simpleenroll", reenroll(x509.Name([]), None), PKCS10), frozenset({"idevid"}),
        ),
        "est.simplereenroll": (
            send("POST", f"{EST}/simplereenroll", reenroll(old.subject, san_of(old)), PKCS10), frozenset({"ldevid"}),
        ),
        "registrar.request_voucher": (
            send("POST", f"{BRSKI}/requestvoucher", pvr.body, pvr.media_type), frozenset({"idevid"}),
        ),
        "registrar.voucher_status": (
            send("POST", f"{BRSKI}/voucher_status", status, "application/json"), frozenset({"idevid"}),
        ),
        "registrar.enroll_status": (
            send("POST", f"{BRSKI}/enrollstatus", status, "application/json"), frozenset({"idevid", "ldevid"}),
        ),
        "identity.nonce": (send("POST", "/v1/agents/nonce", nonce, "application/json"), frozenset({"ldevid"})),
        "identity.enroll": (
            send("POST", "/v1/agents/enroll", fresh, composite.MEDIA_TYPE), frozenset({"ldevid"}),
        ),
        "identity.request_status": (
            send("GET", f"/v1/agents/requests/{place.finished.request.rqh}"), frozenset({"ldevid"}),
        ),
        "identity.gateways": (
            send("GET", f"/v1/owners/{gateway_owner(campus)}/gateways"), frozenset({"ldevid"}),
        ),
        "identity.trust": (send("GET", "/v1/trust"), everybody),
        "identity.spiffe_bundle": (send("GET", "/v1/trust/spiffe-bundle"), everybody),
        # for owners' registered client keys, and none of these has one
        "identity.own_issued": (send("GET", "/v1/owners/self/issued"), frozenset()),
        "identity.classify_own": (
            send("POST", f"/v1/owners/self/agents/{uuid.uuid4()}/class", b'{"class": "x"}', "application/json"),
            frozenset(),
        ),
        "identity.own_standing": (send("GET", "/v1/owners/self/standing"), frozenset()),
        "identity.hand_in_standing": (
            send("POST", "/v1/owners/self/standing", b'{"approval": "x"}', "application/json"), frozenset(),
        ),
        "identity.withdraw_standing": (send("POST", f"/v1/owners/self/standing/{'A' * 43}/withdraw"), frozenset()),
        "identity.challenges": (send("GET", "/v1/owners/self/challenges"), frozenset()),
        "identity.answer": (
            send("POST", "/v1/owners/self/challenges/x", b'{"answer": "x"}', "application/json"), frozenset(),
        ),
    }  # fmt: skip


def gateway_owner(campus: Campus) -> str:
    """The name of an owner who has a gateway."""
    folder = campus.folder / f"gateway-{uuid.uuid4().hex}"
    made = gateway_keygen(folder, ref="bob", audience=ORIGIN, now=datetime.now(UTC))
    statement = made.statement_file.read_text().strip()
    campus.ask("owners.add_gateway", ref="bob", url="https://gw.example", statement=statement)
    return campus.owner("bob").identifier.rpartition("/")[2]


@pytest.mark.lab
@pytest.mark.req("A-11", "E-118", "B-252")
def test_the_same_bytes_pass_for_one_and_are_refused_to_all_others(place: Place) -> None:
    requests = good_requests(place)
    never = {"est.fullcmc"}  # 404 for everybody, see test_what_is_recognised_elsewhere_is_nothing_here
    assert set(requests) == {route.endpoint for route in ROUTES if route.listener == "device"} - OPTIONAL - never
    wrong = []
    for endpoint, (send, allowed) in requests.items():
        # those who may not come first, or the one who may would have spent what is spent once
        for name in sorted(place.visitors, key=lambda one: one in allowed):
            answer = send(place.visitors[name])
            passed = 200 <= answer.status < 300
            if name not in allowed and answer.status not in REFUSED:
                wrong.append((endpoint, name, answer.status, answer.body[:120]))
            # the MASA is gone and the device is in already, so these two are held up behind the door
            elif name in allowed and not passed and endpoint not in ("est.simpleenroll", "registrar.request_voucher"):
                wrong.append((endpoint, name, answer.status, answer.body[:120]))
    assert wrong == []


@pytest.mark.lab
@pytest.mark.req("E-118")
def test_nobody_renews_a_certificate_that_is_not_a_proxys(place: Place) -> None:
    """Agents and servers hold certificates of this very appliance; each asks for its own names again."""
    for name, files in place.files.items():
        if name == "ldevid" or files is None:
            continue
        own = x509.load_pem_x509_certificates(files[0].read_bytes())[0]
        body = reenroll(own.subject, san_of(own))
        for operation in ("simplereenroll", "simpleenroll"):
            answer = place.visitors[name].send("POST", f"{EST}/{operation}", body, PKCS10)
            # a device that asked for CSR attributes earlier is told what its request lacks
            lacks = answer.status == 400 and b"csr-attribute-missing" in answer.body
            assert lacks or answer.status in (401, 403), (name, operation, answer)
            assert "pkcs7" not in answer.headers.get("content-type", "")


@pytest.mark.lab
@pytest.mark.req("E-6", "B-210")
@pytest.mark.parametrize("path", [
    *(f"{EST}/{name}" for name in ("fullcmc", "serverkeygen", "nothing", "cacerts/", "rv", "vs", "es")),
    *(f"{BRSKI}/{name}" for name in ("requestauditlog", "requestenroll", "wrappedcacerts", "rv", "vs", "es", "tpvr",
                                     "tper", "svr", "scac", "ser", "qps")),
    "/v1/decide", "/v1/operations/owners.list", "/healthz", "/crl/agents.crl", "/", "//", "/.well-known",
    f"{EST}/a/b/cacerts", f"/{EST}/cacerts", f"{EST}/%63acerts", f"{EST}/cacerts;x",
])  # fmt: skip
def test_what_is_recognised_elsewhere_is_nothing_here(place: Place, path: str) -> None:
    for name in ("nobody", "idevid", "ldevid", "agent", "registrar-server"):
        for method in ("GET", "POST"):
            answer = place.visitors[name].send(method, path, b"{}" if method == "POST" else b"", "application/json")
            assert answer.status == 404, (path, name, method, answer)


@pytest.mark.lab
def test_labels_that_do_not_exist_open_no_side_door(place: Place) -> None:
    for name in ("nobody", "agent", "self-signed", "ldevid"):
        for operation in ("simpleenroll", "simplereenroll"):
            body = reenroll(place.campus.ldevid.subject, san_of(place.campus.ldevid))
            answer = place.visitors[name].send("POST", f"{EST}/unknown-label/{operation}", body, PKCS10)
            assert answer.status in (401, 403, 404), (name, operation, answer)


def ports(campus: Campus) -> Mapping[str, Client]:
    return {name: campus.client(name) for name in ("device", "decision", "console", "pki")}


@pytest.mark.lab
def test_each_port_serves_its_own_routes_only(place: Place) -> None:
    for name, client in ports(place.campus).items():
        own = {(route.method, route.path) for route in ROUTES if route.listener == name}
        for route in ROUTES:
            path = re.sub(r"\{\w+\*?\}", "agents", route.path)
            if any(_fits(path, one) for _, one in own):
                continue
            answer = client.send(route.method, path, b"{}" if route.max_body else b"", "application/json")
            assert answer.status == 404, (name, route.path, answer)


def _fits(path: str, pattern: str) -> bool:
    parts = re.split(r"\{\w+\*?\}", pattern)
    return re.fullmatch(".+".join(map(re.escape, parts)), path) is not None


HOOK = {"Calling-Station-Id": {"type": "string", "value": ["02-00-00-00-00-01"]}}


@pytest.mark.lab
@pytest.mark.parametrize("header", [
    "", "Bearer", "Bearer ", "Bearer x", "bearer {token}x", "Bearer {token},{token}", "Basic {token}", "{token}",
    "Bearer {TOKEN}", "Token {token}",
])  # fmt: skip
def test_the_decision_port_wants_its_token(place: Place, header: str) -> None:
    client = place.campus.client("decision")
    value = header.format(token=place.decision_token, TOKEN=place.decision_token.swapcase())
    headers = {"Authorization": value} if header else {}
    answer = client.send("POST", "/v1/decide", json.dumps(HOOK).encode(), "application/json", headers)
    assert answer.status in (401, 403), answer
    assert place.decision_token.encode() not in answer.body


@pytest.mark.lab
def test_the_decision_port_answers_its_token_and_no_certificate_replaces_it(place: Place) -> None:
    body = json.dumps(HOOK).encode()
    headers = {"Authorization": f"Bearer {place.decision_token}"}
    answer = place.campus.client("decision").send("POST", "/v1/decide", body, "application/json", headers)
    assert answer.status == 200, answer
    for files in place.files.values():
        client = place.campus.client("decision", *(files or ()))
        try:
            assert client.send("POST", "/v1/decide", body, "application/json").status in (401, 403)
        except ssl.SSLError:  # no certificate is asked for there
            pass
        finally:
            client.close()


@pytest.mark.lab
def test_admin_operations_are_at_the_socket_of_the_home_and_nowhere_else(place: Place) -> None:
    socket = place.campus.home / "run" / "admin.sock"
    assert socket.stat().st_mode & 0o777 == 0o600
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    for client in ports(place.campus).values():
        answer = client.send("POST", "/v1/operations/owners.list", b"{}", "application/json")
        assert answer.status == 404, answer


@pytest.mark.lab
@pytest.mark.req("A-11", "A-102", "E-118")
@pytest.mark.parametrize("how", ["certificate", "proxy"])
def test_a_revoked_proxy_gets_nothing_more(own_campus: Callable[[], Campus], how: str) -> None:
    campus = own_campus()
    campus.start(*UNLIMITED)
    open_client = campus.as_proxy()
    waiting = new_ask(campus, open_client, campus.owner())
    done, _ = an_agent(campus)
    if how == "proxy":
        campus.ask("proxies.revoke", proxy=campus.proxy_id)
    else:
        campus.stop()
        _revoke_certificate(campus)
        campus.start(*UNLIMITED)
        open_client = campus.as_proxy()
    old = campus.ldevid
    for client in (open_client, campus.as_proxy()):
        refused = {
            "nonce": client.send(
                "POST", "/v1/agents/nonce",
                json.dumps({"jkt": jws.jkt(spare_key().public_key()), "purpose": "issue"}).encode(), "application/json",
            ),
            "enroll": waiting.submit(client),
            "status": done.status(client),
            "simplereenroll": client.send(
                "POST", f"{EST}/simplereenroll", reenroll(old.subject, san_of(old)), PKCS10
            ),
            "simpleenroll": client.send("POST", f"{EST}/simpleenroll", reenroll(old.subject, san_of(old)), PKCS10),
            "enrollstatus": client.send(
                "POST", f"{BRSKI}/enrollstatus",
                json.dumps({"version": 1, "status": True, "reason": "", "reason-context": {}}).encode(),
                "application/json",
            ),
        }  # fmt: skip
        assert {name: one.status for name, one in refused.items() if one.status not in (401, 403)} == {}, refused
    if how == "proxy":
        shown = campus.ask("agents.show", agent=done.sub)
        assert "revoked" in json.dumps(shown)
        again = campus.client("device", *(campus.device() / name for name in ("idevid.pem", "idevid.key.pem")))
        answer = again.send("POST", f"{EST}/simpleenroll", reenroll(x509.Name([]), None), PKCS10)
        assert answer.status in (401, 403), answer


def _revoke_certificate(campus: Campus) -> None:
    settings = load_settings(campus.home).settings
    with closing(Store.open(settings.store_url, SystemClock())) as store:
        aki = chains.aki_of(campus.ldevid) or b""
        store.write_sync(
            lambda tx: revoke(tx, aki, campus.ldevid.serial_number, reason="keyCompromise", actor=APPLIANCE)
        )
