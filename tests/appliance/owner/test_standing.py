"""Approving beforehand: the card says what is signed, and nothing is signed before its code was typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.binding import jws, standing
from appliance.binding.errors import BindingError
from appliance.binding.standing import Platform
from appliance.cli import run
from appliance.owner.errors import LifeTooLong, ShortCodeMismatch
from appliance.owner.keys import KEY_FILE, keygen
from appliance.owner.standing import prepare, render, sign
from est.signer import KeySigner
from tests.support import NOW, key

ORIGIN = "spiffe://campus.example"
OWNER = f"{ORIGIN}/owner/22222222-2222-4222-8222-222222222222"
AGENT = f"{ORIGIN}/agent/11111111-1111-4111-8111-111111111111"
PROXY = f"{ORIGIN}/proxy/33333333-3333-4333-8333-333333333333"
SERVER = "https://ids.campus.example/v1"
DIGEST = "ab" * 32


def card(**changed: Any) -> Any:
    values: dict[str, Any] = {
        "owner_id": OWNER, "agent_id": AGENT, "server_id": SERVER, "proxies": [PROXY], "now": NOW,
        "platform": Platform(b"\x01" + bytes(16), (jws.base64url(bytes.fromhex(DIGEST)),), 1000),
    }  # fmt: skip
    return prepare(**(values | changed))


class Counting:
    """A key that counts what it was made to sign."""

    def __init__(self) -> None:
        self.inner = KeySigner(key("owner"))
        self.signed = 0

    def public_key(self) -> Any:
        return self.inner.public_key()

    def sign(self, data: bytes) -> bytes:
        self.signed += 1
        return self.inner.sign(data)


@pytest.mark.req("A-90", "A-93", "A-107")
def test_nothing_is_signed_before_the_code_was_typed_and_then_exactly_the_card() -> None:
    shown, owner = card(max_uses=7, agent_class="robot"), Counting()
    for typed in ("", "y", "yes", shown.short_code[:-1], "AAAA-AAAA"):
        with pytest.raises(ShortCodeMismatch):
            sign(shown, owner, typed)
    assert owner.signed == 0
    signed = sign(shown, owner, shown.short_code.lower().replace("-", " "))
    opened = standing.unseal(signed.token, owner.public_key())
    text = render(shown)
    for fact in (
        AGENT,
        OWNER,
        SERVER,
        PROXY,
        DIGEST,
        "uid 1000",
        "7 times",
        "robot",
        "2026-01-31 12:00 UTC",
        "28800 s",
    ):
        assert fact in text, fact
    assert text.isascii()
    assert (opened.sub, opened.max_uses, opened.agent_class, opened.ttl) == (AGENT, 7, "robot", 28_800)


@pytest.mark.req("A-105", "A-107")
@pytest.mark.parametrize("changed", [{"days": 91}, {"max_ttl": 86_401}])
def test_bounds_beyond_the_limits_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(LifeTooLong):
        card(**changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"agent_id": OWNER},
        {"agent_id": AGENT.replace("campus", "other")},
        {"proxies": []},
        {"proxies": [AGENT]},
        {"platform": Platform(b"\x01", ("A" * 43,), 1)},
        {"platform": Platform(b"\x01" + bytes(16), (), 1)},
    ],
)
def test_bounds_that_cannot_stand_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(BindingError):
        card(**changed)


def test_the_verb_writes_what_it_showed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = keygen(tmp_path, ref="alice", audience=ORIGIN, now=NOW)
    out = tmp_path / "standing.jws"
    words = [
        "owner", "standing-sign", "--owner", OWNER, "--key", str(tmp_path / KEY_FILE), "--agent", AGENT,
        "--server-id", SERVER, "--proxy", PROXY, "--ueid", "01" + "00" * 16, "--executable", DIGEST, "--uid", "1000",
        "--out", str(out), "--max-uses", "9", "--yes", "-o", "json",
    ]  # fmt: skip
    assert run(words) == 0
    told = capsys.readouterr()
    assert "STANDING APPROVAL" in told.err
    assert json.loads(told.out)["s256"] == jws.s256(out.read_text().strip())
    assert jws.read(out.read_text().strip()).kid == made.jkt
    assert run(words) == 1  # never written over
    assert run([word if word != DIGEST else "zz" for word in words]) == 1
    assert "request-malformed" in capsys.readouterr().err
