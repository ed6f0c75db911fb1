"""What stands behind one serial number: exported, checked offline, and every single damage found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509

from appliance import evidence_package
from appliance.binding import jws, package
from appliance.binding.bundle import TrustBundle, read, write
from appliance.binding.errors import PackageEntryWrong
from appliance.binding.package import verify_package
from appliance.checkpoint_keeper import CheckpointKeeper
from appliance.cli import run
from appliance.errors import NotFound
from appliance.evidence_package import EvidencePackages, check_inclusion
from est.errors import Refusal
from est.signer import KeySigner
from tests.appliance.identity.campus import ADMIN, Campus, new_key
from tests.appliance.identity.test_standing import Agent, stand

Files = dict[str, bytes]


@cache
def made(folder: Path) -> tuple[dict[str, Files], TrustBundle]:
    """Packages of a first issue, of a renewal under a standing approval, and of a revoked certificate."""

    async def story() -> tuple[dict[str, Files], TrustBundle]:
        campus = Campus.create(folder)
        try:
            proxy, owner = await campus.proxy(), await campus.owner()
            packages = EvidencePackages(ca=campus.ca, store=campus.store, clock=campus.clock)
            first = (await proxy.ask(owner, txn="flow-7")).approved()
            _, answer = await first.submit()
            agent = await Agent.first(proxy, owner)
            _, renewed = await agent.renew(stand(owner, agent.sub, proxy))
            third = (await proxy.ask(owner)).approved()
            _, revoked = await third.submit()
            await campus.registry.revoke(third.sub, actor=ADMIN)
            found = {}
            for name, one in (("first", answer), ("standing", renewed), ("revoked", revoked)):
                texts = await packages.export(one["serial"])
                found[name] = {file: text.encode() for file, text in texts.items()}
            with pytest.raises(NotFound):
                await packages.export("abcd")
            with pytest.raises(NotFound):
                await packages.export("no number")
            await campus.directory.suspend("alice", actor=ADMIN)
            bundle = campus.service.issuer.trust_bundle(await campus.directory.records())
            return found, read(write(bundle))
        finally:
            campus.close()

    return asyncio.run(story())


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Files], TrustBundle]:
    return made(tmp_path_factory.mktemp("packages"))


@pytest.mark.req("A-113", "A-112", "A-5", "A-34")
@pytest.mark.parametrize("name", ["first", "standing", "revoked"])
def test_a_package_shows_offline_why_the_agent_was_allowed(
    packages: tuple[dict[str, Files], TrustBundle], name: str
) -> None:
    found, bundle = packages
    report = verify_package(found[name], bundle)
    steps = dict(report.steps)
    assert list(steps) == [
        "chain", "name", "extension", "owner", "approval", "binding", "owner now", "request", "evidence", "appraisal",
        "audit",
    ]  # fmt: skip
    assert steps["owner now"] == "suspended"
    assert steps["appraisal"] == "affirming"
    assert ("revoked at" in steps["audit"]) == (name == "revoked")
    assert report.model == ("standing" if name == "standing" else "agent-mediated")
    manifest = json.loads(found[name][package.MANIFEST])
    assert manifest["serial"] == report.serial.rjust(len(manifest["serial"]), "0")
    told = [json.loads(json.loads(line)["body"])["event"] for line in found[name][package.AUDIT].splitlines()]
    wanted = {"agent-request-received", "evidence-appraised", "certificate-pending", "dual-identity-issued"}
    assert wanted | {"standing-approval-used" if name == "standing" else "owner-approved"} <= set(told)


def text(files: Mapping[str, bytes], name: str) -> str:
    return files[name].decode()


def swap_entry(files: Files, event: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change an entry and give it a new hash, as a forger would."""
    from hashlib import sha256

    lines = []
    for line in text(files, package.AUDIT).splitlines():
        row = json.loads(line)
        entry = json.loads(row["body"])
        if entry["event"] == event:
            change(entry)
            row["body"] = json.dumps(entry)
            row["hash"] = sha256(bytes.fromhex(row["prev"]) + row["body"].encode()).hexdigest()
        lines.append(json.dumps(row))
    files[package.AUDIT] = "\n".join(lines).encode()


def drop_entries(files: Files, event: str) -> None:
    kept = [line for line in text(files, package.AUDIT).splitlines() if f'"event\\":\\"{event}' not in line]
    files[package.AUDIT] = "\n".join(kept).encode()


DAMAGES: dict[str, Callable[[Files, Files], None]] = {
    "the other's request": lambda files, other: files.update({package.REQUEST: other[package.REQUEST]}),
    "the other's evidence": lambda files, other: files.update({package.EVIDENCE: other[package.EVIDENCE]}),
    "the other's result": lambda files, other: files.update({package.EAR: other[package.EAR]}),
    "the other's certificate": lambda files, other: files.update({package.CERTIFICATE: other[package.CERTIFICATE]}),
    "the other's log": lambda files, other: files.update({package.AUDIT: other[package.AUDIT]}),
    "no request": lambda files, other: files.pop(package.REQUEST) and None,
    "no proxy": lambda files, other: files.pop(package.PROXY) and None,
    "no log": lambda files, other: files.pop(package.AUDIT) and None,
    "proxy without its CA": lambda files, other: files.update(
        {package.PROXY: files[package.PROXY].split(b"-----END CERTIFICATE-----")[0] + b"-----END CERTIFICATE-----\n"}
    ),
    "agents CA in the place of the devices CA": lambda files, other: files.update(
        {package.PROXY: _with_ca(files[package.PROXY], files[package.CERTIFICATE])}
    ),
    "a bit of the request": lambda files, other: files.update({package.REQUEST: flip(files[package.REQUEST])}),
    "a bit of the evidence": lambda files, other: files.update({package.EVIDENCE: flip(files[package.EVIDENCE])}),
    "a bit of the log": lambda files, other: files.update(
        {package.AUDIT: files[package.AUDIT].replace(b"proxy", b"prexy", 1)}
    ),
    "entry about other bytes": lambda files, other: swap_entry(
        files, "certificate-pending", lambda one: one["fields"].update(tbs_sha256="00" * 32)
    ),
    "entry with another approval": lambda files, other: swap_entry(
        files, "dual-identity-issued", lambda one: one["fields"].update(approvals_s256=["x"])
    ),
    "without the pending entry": lambda files, other: drop_entries(files, "certificate-pending"),
    "without the issued entry": lambda files, other: drop_entries(files, "dual-identity-issued"),
    "not ASCII": lambda files, other: files.update({package.EAR: b"\xff\xfe"}),
    "log that is no JSON": lambda files, other: files.update({package.AUDIT: b"[" * 5000}),
    "no PEM": lambda files, other: files.update({package.CERTIFICATE: b"hello"}),
}


def _with_ca(proxy: bytes, certificate: bytes) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    leaf, _, root = x509.load_pem_x509_certificates(proxy)
    _, agents = x509.load_pem_x509_certificates(certificate)
    return b"".join(one.public_bytes(Encoding.PEM) for one in (leaf, agents, root))


def flip(token: bytes) -> bytes:
    at = token.index(b".") + 20
    return token[:at] + (b"A" if token[at : at + 1] != b"A" else b"B") + token[at + 1 :]


@pytest.mark.req("A-113", "A-23", "A-112")
@pytest.mark.parametrize("kind", ["first", "standing"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_of_a_package_is_a_typed_refusal(
    packages: tuple[dict[str, Files], TrustBundle], damage: str, kind: str
) -> None:
    found, bundle = packages
    files = dict(found[kind])
    DAMAGES[damage](files, found["revoked"])
    with pytest.raises(Refusal):
        verify_package(files, bundle)


@pytest.mark.req("A-113")
def test_approvals_of_others_do_not_pass(packages: tuple[dict[str, Files], TrustBundle]) -> None:
    found, bundle = packages
    name = package.APPROVAL.format(1)
    with pytest.raises(Refusal) as refused:
        verify_package({**found["standing"], name: found["first"][name]}, bundle)
    assert refused.value.reason == "approval-digest-mismatch"
    with pytest.raises(Refusal):
        verify_package({**found["first"], package.APPROVAL.format(2): found["revoked"][name]}, bundle)


@pytest.mark.req("A-35", "A-113")
def test_each_of_several_approvals_is_judged(tmp_path: Path) -> None:
    """The certificate names the first approval alone, and an entry of the log can be written anew by whoever likes."""

    async def story() -> None:
        campus = Campus.create(tmp_path)
        try:
            proxy, owner, second = await campus.proxy(), await campus.owner(), KeySigner(new_key())
            await campus.directory.add_key("alice", owner.statement(second), actor=ADMIN)
            ask, other = await proxy.ask(owner), await proxy.ask(owner)
            both = tuple(owner.approve(ask.token, one) for one in (owner.signer, second))
            status, answer = await replace(ask, approvals=both).submit()
            assert status == 201, answer
            packages = EvidencePackages(ca=campus.ca, store=campus.store, clock=campus.clock)
            files = {name: one.encode() for name, one in (await packages.export(answer["serial"])).items()}
            bundle = campus.service.issuer.trust_bundle(await campus.directory.records())
            assert verify_package(files, bundle).agent_id == ask.sub
            forged = {
                "owner-key-unknown": owner.forge(ask.token, KeySigner(new_key())),
                "approval-for-other-request": owner.approve(other.token, second),
                "approval-denied": owner.approve(ask.token, second, deny=True),
                "signature-invalid": flip(both[1].encode()).decode(),
            }
            for reason, token in forged.items():
                hashes = [jws.s256(both[0]), jws.s256(token)]
                changed = {**files, package.APPROVAL.format(2): token.encode()}
                swap_entry(
                    changed, "dual-identity-issued", lambda one, h=hashes: one["fields"].update(approvals_s256=h)
                )
                with pytest.raises(Refusal) as refused:
                    verify_package(changed, bundle)
                assert refused.value.reason == reason
            twice = {**files, package.APPROVAL.format(2): both[0].encode()}
            with pytest.raises(Refusal) as refused:
                verify_package(twice, bundle)
            assert refused.value.reason == "owner-key-unknown"
        finally:
            campus.close()

    asyncio.run(story())


def test_the_verb_reads_a_folder(
    packages: tuple[dict[str, Files], TrustBundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, bundle = packages
    owners, folder = tmp_path / "bundle.json", tmp_path / "package"
    owners.write_text(write(bundle))
    folder.mkdir()
    for name, content in found["standing"].items():
        (folder / name).write_bytes(content)
    assert run(["verify", "--owners", str(owners), "--package", str(folder), "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["model"], len(told["steps"])) == (True, "standing", 11)
    (folder / package.EAR).write_bytes(found["first"][package.EAR])
    assert run(["verify", "--owners", str(owners), "--package", str(folder)]) == 1
    assert "ear-digest-mismatch" in capsys.readouterr().err
    assert run(["verify", "--owners", str(owners)]) == 2
    assert run(["verify", "--owners", str(owners), "--package", str(folder), "--approval", str(folder / "x")]) == 2


@pytest.mark.req("A-113", "A-112")
def test_a_package_proves_that_the_issue_is_in_the_log_that_was_signed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, stranger = new_key(), new_key()

    async def story() -> tuple[list[Files], TrustBundle]:
        campus = Campus.create(tmp_path)
        try:
            proxy, owner = await campus.proxy(), await campus.owner()
            keeper = CheckpointKeeper(
                campus.store, campus.clock, key, origin="spiffe://campus.example", file=tmp_path / "signed.jsonl",
                seconds=60, entries=1000,
            )  # fmt: skip
            packages = EvidencePackages(ca=campus.ca, store=campus.store, clock=campus.clock, checkpoints=keeper)
            found = []
            for _ in range(2):
                _, answer = await (await proxy.ask(owner)).approved().submit()
                texts = await packages.export(answer["serial"])
                found.append({name: one.encode() for name, one in texts.items()})
            return found, campus.service.issuer.trust_bundle(await campus.directory.records())
        finally:
            campus.close()

    (files, other), bundle = asyncio.run(story())
    assert package.INCLUSION in json.loads(files[package.MANIFEST])["sha256"]
    issued = verify_package(files, bundle).issued
    assert check_inclusion(files, issued, key.public_key()).origin == "spiffe://campus.example"

    def reason(changed: Files, by: Any = key) -> str:
        with pytest.raises(Refusal) as refused:
            check_inclusion(changed, issued, by.public_key())
        return refused.value.reason

    document = json.loads(files[package.INCLUSION])
    assert reason({**files, package.INCLUSION: other[package.INCLUSION]}) == "package-entry-wrong"
    assert reason({name: one for name, one in files.items() if name != package.INCLUSION}) == "malformed"
    assert reason(files, stranger) == "signature-invalid"
    rewritten = json.dumps({**document, "body": document["body"].replace("agent", "angel", 1)}).encode()
    assert reason({**files, package.INCLUSION: rewritten}) == "audit-broken"
    forged = dict(files)
    swap_entry(forged, "dual-identity-issued", lambda one: one["fields"].update(tier="warning"))
    assert verify_package(forged, bundle).issued != issued, "what the package alone cannot tell"
    with pytest.raises(PackageEntryWrong):
        check_inclusion(forged, verify_package(forged, bundle).issued, key.public_key())

    folder, owners, jwk = tmp_path / "package", tmp_path / "bundle.json", tmp_path / "audit.jwk"
    folder.mkdir()
    owners.write_text(write(bundle))
    jwk.write_text(json.dumps(jws.jwk(key.public_key(), algorithm=True)))
    for name, content in other.items():
        (folder / name).write_bytes(content)
    command = ["verify", "--owners", str(owners), "--package", str(folder), "--audit-key", str(jwk), "-o", "json"]
    assert run(command) == 0
    assert json.loads(capsys.readouterr().out)["steps"][-1]["step"] == "log"
    (folder / package.INCLUSION).write_bytes(files[package.INCLUSION])
    assert run(command) == 1
    assert run(["verify", "--owners", str(owners), "--cert", str(jwk), "--audit-key", str(jwk)]) == 2


def test_entries_of_another_agent_under_the_same_reference_are_left_out() -> None:
    row = SimpleNamespace(txn="flow-7", agent_id="agent-a", serial="0a")
    for fields, expected in (
        ({"txn": "flow-7", "agent": "agent-a"}, True),
        ({"txn": "flow-7"}, True),
        ({"txn": "flow-7", "agent": "agent-b"}, False),
        ({"txn": "flow-8", "agent": "agent-a"}, False),
    ):
        assert evidence_package._is_about({"fields": fields}, row) is expected
