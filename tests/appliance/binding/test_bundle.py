"""The trust bundle: read back as written, refused when damaged, and enough for `appliance verify` to judge offline."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.binding import bundle, dual_identity
from appliance.binding.bundle import TrustBundle
from appliance.binding.errors import Malformed
from appliance.binding.facts import OwnerKey, OwnerRecord
from appliance.cli import run
from tests.appliance.binding.example import AT, DOMAIN, EXAMPLE, ISSUER, KEYS, LEAF, OWNER, OWNER_RECORD

ISSUER_KEYS = {"ids-2026-01": KEYS["issuer"]}


def example(owner: OwnerRecord = OWNER_RECORD, **changes: object) -> TrustBundle:
    whole = TrustBundle(
        DOMAIN, ISSUER, ISSUER_KEYS, dual_identity.ARC, 300,
        {owner.owner_id: owner}, AT,
    )  # fmt: skip
    return replace(whole, **changes)  # type: ignore[arg-type]


@pytest.mark.req("A-30")
def test_a_bundle_is_read_back_as_it_was_written() -> None:
    (key,) = OWNER_RECORD.keys
    dated = replace(key, state="retired", not_before=AT, not_after=AT + timedelta(days=1))
    for wanted in (example(), example(replace(OWNER_RECORD, keys=(dated,), state="suspended"))):
        found = bundle.read(bundle.write(wanted))
        assert (found.domain.origin, found.domain.server_id) == (DOMAIN.origin, DOMAIN.server_id)
        assert found.domain.anchors.certificates == DOMAIN.anchors.certificates
        assert found.owners[OWNER].keys == tuple(wanted.owners[OWNER].keys)
        assert found.owners[OWNER].state == wanted.owners[OWNER].state
        assert (found.arc, found.backdating_seconds, found.made_at) == (wanted.arc, 300, AT)
        assert found.wit_keys == ISSUER_KEYS


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(version=2),
        lambda d: d.pop("origin"),
        lambda d: d.update(server_id=""),
        lambda d: d.update(anchors=[]),
        lambda d: d.update(anchors=["AAAA"]),
        lambda d: d.update(anchors=["?"]),
        lambda d: d.update(anchors=[5]),
        lambda d: d.update(owners={}),
        lambda d: d.update(owners=d["owners"] * 2),
        lambda d: d["owners"][0].update(state="happy"),
        lambda d: d["owners"][0]["keys"][0].update(state="new"),
        lambda d: d["owners"][0]["keys"][0].update(jwk={"kty": "EC"}),
        lambda d: d["owners"][0]["keys"][0].update(not_before="yesterday"),
        lambda d: d.update(backdating_seconds=True),
        lambda d: d.update(made_at=-1),
        lambda d: d["wit_keys"].append("x"),
    ],
)
def test_a_damaged_bundle_is_refused(damage: Callable[[Any], object]) -> None:
    document = json.loads(bundle.write(example()))
    damage(document)
    with pytest.raises(Malformed):
        bundle.read(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"version": 1, "version": 1}', "\ud800"])
def test_what_is_no_bundle_at_all_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        bundle.read(text)


def verify(folder: Path, wanted: TrustBundle, *more: str) -> int:
    (folder / "bundle.json").write_text(bundle.write(wanted), encoding="utf-8")
    (folder / "agent.pem").write_bytes(LEAF.public_bytes(Encoding.PEM))
    (folder / "agent.wit").write_text(EXAMPLE["wit_full"], encoding="ascii")
    return run(["verify", "--owners", str(folder / "bundle.json"), "--at", AT.isoformat(), *more])


@pytest.mark.req("A-30", "A-34")
def test_the_command_verifies_the_worked_example_step_by_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(tmp_path, example(), "--cert", str(tmp_path / "agent.pem"), "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["agent"], told["owner"]) == (True, EXAMPLE["agent_id"], OWNER)
    assert told["owner_key"] == EXAMPLE["jkt"]["owner"]
    assert [one["step"] for one in told["steps"]] == ["chain", "name", "extension", "owner", "approval", "binding"]
    assert verify(tmp_path, example(), "--cert", str(tmp_path / "agent.pem")) == 0
    assert f"verified: {EXAMPLE['agent_id']} for {OWNER}" in capsys.readouterr().out
    assert verify(tmp_path, example(), "--wit", str(tmp_path / "agent.wit")) == 0
    assert f"verified: {EXAMPLE['agent_id']} for {OWNER}" in capsys.readouterr().out


@pytest.mark.req("A-30", "A-34")
def test_the_command_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (key,) = OWNER_RECORD.keys
    other = OwnerKey(EXAMPLE["jkt"]["proxy"], KEYS["proxy"])
    for owner, reason in (
        (replace(OWNER_RECORD, keys=(replace(key, state="revoked"),)), "owner-key-not-valid"),
        (replace(OWNER_RECORD, keys=(other,)), "owner-key-unknown"),
        (replace(OWNER_RECORD, owner_id=OWNER[:-1] + "0"), "owner-unknown"),
    ):
        assert verify(tmp_path, example(owner), "--cert", str(tmp_path / "agent.pem")) == 1
        assert f"appliance: {reason}:" in capsys.readouterr().err
    late = (AT + timedelta(days=30)).isoformat()
    assert verify(tmp_path, example(), "--cert", str(tmp_path / "agent.pem"), "--at", late) == 1
    assert "certificate-outside-validity" in capsys.readouterr().err


@pytest.mark.req("A-40")
def test_usage_errors_of_the_command_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(tmp_path, example()) == 2
    assert verify(tmp_path, example(), "--cert", str(tmp_path / "bundle.json")) == 1
    assert verify(tmp_path, example(), "--cert", str(tmp_path / "agent.pem"), "--at", "soon") == 1
    assert verify(tmp_path, example(), "--cert", str(tmp_path / "none.pem")) == 1
    for line in capsys.readouterr().err.splitlines():
        assert "Traceback" not in line
