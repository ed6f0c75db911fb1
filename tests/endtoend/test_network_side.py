"""From the supplicant's side: what an agent's files are worth at a switch port, and whom they keep out."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from appliance.agent import load_key
from appliance.binding import jws, proof, spiffe_bundle
from est.signer import KeySigner
from lab.supplicant import Outcome, authenticate
from radius import handshake
from radius.decide import Decision
from radius.request import AccessRequest
from radius.server import Nas, RadiusServer
from tests.campus import NAS_SECRET, Campus, appliance, new_ask, write_identity

pytestmark = pytest.mark.xdist_group("network-side")  # one campus for the whole module
WITHOUT_EAPOL_TEST = pytest.mark.skipif(shutil.which("eapol_test") is None, reason="eapol_test is not installed")


@dataclass(frozen=True)
class Host:
    """A campus with its RADIUS server, and two agents' folders as `appliance agent request` wrote them."""

    campus: Campus
    agent: Path
    other: Path


def request_credential(campus: Campus, folder: Path) -> Path:
    owner = campus.owner()
    approve = shlex.join([
        sys.executable, "-m", "appliance", "owner", "sign", "--key", str(owner.key_file), "--owner", owner.identifier,
        "--request", "{request}", "--csr", "{csr}", "--out", "{approval}", "--yes",
    ])  # fmt: skip
    done = appliance(
        "agent", "request", "--socket", campus.state / "agent.sock", "--out", folder, "--owner", owner.identifier,
        "--approval-command", approve, "-o", "json",
    )  # fmt: skip
    assert done.status == 0, done.err
    return folder


@pytest.fixture(scope="module")
def host(template: Campus, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    folder = tmp_path_factory.mktemp("host")
    campus = template.copy(folder / "campus")
    campus.start()
    campus.start_proxy()
    yield Host(campus, request_credential(campus, folder / "agent"), request_credential(campus, folder / "other"))
    campus.close()


def values_of(block: str) -> dict[str, str]:
    return dict(re.findall(r'^\s*(\w+)="?([^"\n]*)"?$', block, re.MULTILINE))


def log_in_with(agent: Path, address: str) -> Outcome:
    """The project's supplicant with exactly what stands in the agent's wpa_supplicant.conf."""
    block = values_of((agent / "wpa_supplicant.conf").read_text())
    where, _, port = address.rpartition(":")
    return asyncio.run(
        authenticate(
            where, int(port), NAS_SECRET.encode(), identity=block["identity"],
            certificate_chain_pem=Path(block["client_cert"]).read_bytes(),
            key_pem=Path(block["private_key"]).read_bytes(), ca_pem=Path(block["ca_cert"]).read_bytes(),
            server_name=block["domain_match"],
        )
    )  # fmt: skip


def eapol_test(agent: Path, address: str) -> tuple[bool, str]:
    """The foreign supplicant with the file as it is; whether it was let in, and its output."""
    where, _, port = address.rpartition(":")
    program = shutil.which("eapol_test")
    assert program is not None
    done = subprocess.run(
        [program, "-c", str(agent / "wpa_supplicant.conf"), "-a", where, "-p", port, "-s", NAS_SECRET, "-t", "8"],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    return done.returncode == 0, done.stdout


def yes_to_all(request: AccessRequest) -> Decision:
    raise AssertionError("a supplicant that pins the server's name never comes this far")


class Impostor:
    """A RADIUS server with whatever certificate it got hold of."""

    def __init__(
        self, chain: list[x509.Certificate], key: ec.EllipticCurvePrivateKey, anchor: x509.Certificate
    ) -> None:
        self._server = RadiusServer(
            identity=handshake.ServerIdentity(chain[0], tuple(chain[1:]), key),
            anchors=(anchor,),
            nas=lambda address: Nas("lab-switch", NAS_SECRET.encode()),
            authorize=yes_to_all,
            on_failure=lambda request, decision: None,
            owner_id_oid="1.3.6.1.4.1.32473.2026.1.2",
        )

    async def __aenter__(self) -> str:
        return f"127.0.0.1:{await self._server.start('127.0.0.1', 0)}"

    async def __aexit__(self, *_: Any) -> None:
        await self._server.close()


def key_in(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def impostors(host: Host) -> dict[str, Impostor]:
    """Everybody on the campus with a certificate under its root, but not the RADIUS server's."""
    campus, agents_ca = host.campus, host.campus.certificates_of("agents")[0]
    other = x509.load_pem_x509_certificates((host.other / "chain.pem").read_bytes())
    found = {"another agent": Impostor(other, key_in(host.other / "agent.key.pem"), agents_ca)}
    found["its own proxy"] = Impostor([campus.ldevid, *campus.certificates_of("devices")], campus.ldevid_key, agents_ca)
    for name in ("https", "registrar"):
        found[f"the {name} server"] = Impostor(campus.certificates_of(name), campus.key_of(name), agents_ca)
    return found


@pytest.mark.lab
@pytest.mark.slow
def test_the_block_that_was_written_logs_in_at_the_real_server(host: Host) -> None:
    outcome = log_in_with(host.agent, host.campus.listeners["radius"])
    assert (outcome.code, outcome.vlan, outcome.msk_matches) == ("accept", "20", True), outcome


@pytest.mark.lab
@pytest.mark.parametrize("who", ["another agent", "its own proxy", "the https server", "the registrar server"])
def test_no_other_campus_certificate_can_pose_as_the_radius_server(host: Host, who: str) -> None:
    async def try_it() -> Outcome:
        block = values_of((host.agent / "wpa_supplicant.conf").read_text())
        async with impostors(host)[who] as address:
            where, _, port = address.rpartition(":")
            return await authenticate(
                where, int(port), NAS_SECRET.encode(), identity=block["identity"],
                certificate_chain_pem=Path(block["client_cert"]).read_bytes(),
                key_pem=Path(block["private_key"]).read_bytes(), ca_pem=Path(block["ca_cert"]).read_bytes(),
                server_name=block["domain_match"],
            )  # fmt: skip

    outcome = asyncio.run(try_it())
    assert outcome.code != "accept"
    assert "server certificate refused" in outcome.trouble, outcome


@pytest.mark.lab
@pytest.mark.interop
@WITHOUT_EAPOL_TEST
@pytest.mark.slow
def test_eapol_test_takes_the_block_and_refuses_an_agent_as_server(host: Host) -> None:
    is_in, output = eapol_test(host.agent, host.campus.listeners["radius"])
    assert is_in, output[-2000:]
    assert re.search(r"Attribute 81 .*\n\s+Value: '?(20|3230)", output), output[-3000:]

    async def try_it() -> tuple[bool, str]:
        async with impostors(host)["another agent"] as address:
            return await asyncio.to_thread(eapol_test, host.agent, address)

    is_in, output = asyncio.run(try_it())
    assert not is_in
    assert "domain_match" in output or "Domain mismatch" in output or "CERT-ERROR" in output, output[-2000:]
    # the same impostor passes where the name is not pinned: this is what domain_match is for
    unpinned = host.agent.with_name("unpinned")
    unpinned.mkdir(exist_ok=True)
    text = (host.agent / "wpa_supplicant.conf").read_text()
    (unpinned / "wpa_supplicant.conf").write_text(re.sub(r"^\s*domain_match=.*\n", "", text, flags=re.MULTILINE))

    async def without_name() -> str:
        server = impostors(host)["another agent"]
        server._server._authorize = lambda request: (_ for _ in ()).throw(AssertionError)  # type: ignore[method-assign]
        async with server as address:
            return (await asyncio.to_thread(eapol_test, unpinned, address))[1]

    assert "CERT-ERROR" not in asyncio.run(without_name())


@pytest.mark.lab
@pytest.mark.req("A-5")
def test_one_transaction_id_is_found_from_the_request_to_the_switch(host: Host, tmp_path: Path) -> None:
    campus = host.campus
    client = campus.as_proxy()
    txn = "txn-of-this-test-7d1f"
    ask = new_ask(campus, client, campus.owner(), txn=txn)
    answer = ask.submit(client)
    assert answer.json["txn"] == txn == ask.request.txn
    chain, key = write_identity(tmp_path, x509.load_pem_x509_certificates(answer.json["certificate"].encode()), ask.key)
    where, _, port = campus.listeners["radius"].rpartition(":")
    outcome = asyncio.run(
        authenticate(
            where, int(port), NAS_SECRET.encode(), identity="anonymous@campus.example",
            certificate_chain_pem=chain.read_bytes(), key_pem=key.read_bytes(),
            ca_pem=(host.agent / "root.pem").read_bytes(), server_name="radius.campus.example",
        )
    )  # fmt: skip
    assert outcome.code == "accept"
    assert outcome.attributes[25] == [txn.encode()], "the Class attribute that the switch puts into accounting"
    audited = [row["event"] for row in map(_entry, campus.ask("audit.export")) if txn in json.dumps(row)]
    assert {"agent-request-received", "evidence-appraised", "owner-approved", "dual-identity-issued"} <= {*audited}, (
        audited
    )
    deadline = time.monotonic() + 60
    while not (rows := [row for row in campus.ask("access.log") if txn in json.dumps(row)]):
        assert time.monotonic() < deadline, "no row of the decision log names the transaction"
        time.sleep(0.1)
    assert rows[-1]["vlan"] == "20"
    assert txn in json.dumps(campus.ask("agents.show", agent=ask.sub))


def _entry(line: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.loads(line)["body"])
    return found


@pytest.mark.req("A-30", "A-34", "A-113")
def test_a_stranger_verifies_certificate_and_wit_with_the_trust_bundle_alone(host: Host, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.json"
    campus = host.campus
    assert appliance("owners", "bundle", bundle, "--home", campus.home).status == 0
    assert b"PRIVATE" not in bundle.read_bytes() and '"d"' not in bundle.read_text()
    for option, file in (("--cert", "chain.pem"), ("--wit", "wit.txt")):
        done = appliance("verify", option, host.agent / file, "--owners", bundle, "-o", "json", "--home", tmp_path)
        assert done.status == 0, done.err
        told = json.loads(done.out)
        assert told["ok"] and told["model"] == "agent-mediated"
        assert bool(told["approval"]) is (option == "--cert")  # the WIT names its approval by digest
    swapped = json.loads(bundle.read_text())
    for owner in swapped["owners"]:
        for key in owner["keys"]:
            key["state"] = "revoked"
    (tmp_path / "revoked.json").write_text(json.dumps(swapped))
    refused = appliance("verify", "--cert", host.agent / "chain.pem", "--owners", tmp_path / "revoked.json")
    assert refused.status == 1 and "owner-key-not-valid" in refused.err


@pytest.mark.req("A-34")
def test_another_campus_that_took_in_our_bundle_checks_our_agents_at_its_own_place(host: Host, tmp_path: Path) -> None:
    """Two appliances: theirs knows ours by an imported trust bundle, and by nothing else."""
    ours, theirs = host.campus, tmp_path / "theirs"
    bundle = tmp_path / "bundle.json"
    assert appliance("owners", "bundle", bundle, "--home", ours.home).status == 0
    assert appliance("init", "--home", theirs, "--trust-domain", "other.example", "--org", "Other").status == 0

    def ask(*words: str | Path) -> Any:
        return appliance(*words, "--home", theirs, "-o", "json")

    unknown = ask("verify", "--cert", host.agent / "chain.pem")
    assert unknown.status == 1 and "origin-mismatch" in unknown.err
    assert ask("trust", "import", bundle).status == 0
    (known,) = json.loads(ask("trust", "list").out)
    assert known["origin"] == "spiffe://campus.example" and len(known["anchors"]) == 1
    judged = json.loads(ask("verify", "--cert", host.agent / "chain.pem").out)
    assert (judged["ok"], judged["campus"], judged["proved_by"]) == (True, "spiffe://campus.example", "tls")
    # a WIT counts there with a proof by the agent's key, made for their service
    card, signed_card = tmp_path / "card.json", tmp_path / "signed-card.json"
    card.write_text(json.dumps({"name": "Courier", "url": "https://courier.campus.example/"}))
    key = host.agent / "agent.key.pem"
    assert appliance("agent", "sign-card", card, "--key", key, "--out", signed_card).status == 0
    target = "https://orders.other.example/v1"
    wit = (host.agent / "wit.txt").read_text().strip()
    (tmp_path / "proof").write_text(
        proof.seal(KeySigner(load_key(key)), wit=wit, target=target, exp=int(time.time()) + 120, jti="J" * 22)
    )
    words = ("verify", "--wit", host.agent / "wit.txt", "--proof", tmp_path / "proof", "--card", signed_card)
    judged = json.loads(ask(*words, "--target", f"{target}?page=1").out)
    assert judged["proved_by"] == "wpt"
    assert "proof-wrong-audience" in ask(*words, "--target", "https://elsewhere.example/").err
    signed_card.write_text(signed_card.read_text().replace("Courier", "Thief"))
    assert "card-not-signed" in ask(*words, "--target", target).err
    assert ask("trust", "remove", "spiffe://campus.example").status == 0
    assert "origin-mismatch" in ask("verify", "--cert", host.agent / "chain.pem").err


def test_the_spiffe_bundle_is_public_and_names_who_signs_agents(host: Host) -> None:
    answer = host.campus.client().send("GET", "/v1/trust/spiffe-bundle")
    assert answer.status == 200
    found = spiffe_bundle.read(answer.body.decode())
    (authority,) = found.authorities
    chain = x509.load_pem_x509_certificates((host.agent / "chain.pem").read_bytes())
    assert chain[0].issuer == authority.subject
    wit = (host.agent / "wit.txt").read_text().strip()
    jws.unseal(wit, typ="wit+jwt", key=found.wit_keys[str(jws.read(wit).kid)])
