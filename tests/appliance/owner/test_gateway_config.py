"""The gateway's file: what it may say, and that a mistake is named before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.owner.errors import AnswerPolicyInvalid, GatewayConfigInvalid
from appliance.owner.gateway.config import GatewayLimits, load_gateway_config, read_org

OWNER = "spiffe://campus.example/owner/0b8e7f0a-6f7e-4c53-9c0e-1f5b6a1d2c3d"
PROXY = "spiffe://campus.example/proxy/0b8e7f0a-6f7e-4c53-9c0e-1f5b6a1d2c3d"
GOOD = f"""\
version = 1
listen = "[::1]:9444"
key = "server"
[limits]
queue = 7
[[domain]]
name = "campus"
server = "https://ids.campus.example:8443"
root = "root.pem"
client = "client"
owner = "{OWNER}"
proxies = ["{PROXY}"]
org = ["member.txt"]
policy = "answers.toml"
policy_key = "key.pem"
"""


def write(folder: Path, text: str) -> Path:
    (folder / "member.txt").write_text("member 0815\n")
    (folder / "answers.toml").write_text('version = 1\notherwise = "deny"\n')
    path = folder / "gateway.toml"
    path.write_text(text)
    return path


@pytest.mark.req("A-52", "A-36")
def test_a_good_file_is_read_with_what_it_names(tmp_path: Path) -> None:
    found = load_gateway_config(write(tmp_path, GOOD))
    assert (found.host, found.port, found.key) == ("::1", 9444, tmp_path / "server")
    assert found.limits == GatewayLimits(queue=7)
    (domain,) = found.domains
    assert (domain.org, domain.proxies, domain.policy_key) == (
        ("member 0815",),
        frozenset({PROXY}),
        tmp_path / "key.pem",
    )
    assert domain.policy is not None and domain.policy.otherwise == "deny"


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ("version = 1", "version = 2"),
        ("version = 1", "version = 1\nmore = 1"),
        ("version = 1", "version = "),
        ("[::1]:9444", "nowhere"),
        ("[::1]:9444", "host:65536"),
        ("[::1]:9444", "host:٣"),
        ("queue = 7", "queue = 0"),
        ("queue = 7", "queue = true"),
        ("queue = 7", "wait_seconds = 26"),
        ("queue = 7", "speed = 1"),
        ('key = "server"', "key = 1"),
        ('name = "campus"', 'name = ""'),
        (OWNER, PROXY),
        (OWNER, "spiffe://campus.example/owner/x?y"),
        (PROXY, PROXY.replace("campus", "other")),
        (f'["{PROXY}"]', '"all"'),
        ('["member.txt"]', '["missing.txt"]'),
        ('["member.txt"]', '["gateway.toml"]'),
        ('["member.txt"]', "[1]"),
        ('["member.txt"]', '["member.txt", "member.txt", "member.txt", "member.txt", "member.txt"]'),
        ('policy_key = "key.pem"\n', ""),
        ('policy = "answers.toml"\n', ""),
        ("[[domain]]", "[domain]"),
        ('root = "root.pem"', 'root = "root.pem"\nproxy = "x"'),
    ],
    ids=lambda text: text[:40],
)
def test_a_mistake_is_named(tmp_path: Path, was: str, becomes: str) -> None:
    assert was in GOOD
    with pytest.raises(GatewayConfigInvalid):
        load_gateway_config(write(tmp_path, GOOD.replace(was, becomes)))


def test_what_the_rules_file_says_wrong_is_said_by_the_rules(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    (tmp_path / "answers.toml").write_text("version = 3")
    with pytest.raises(AnswerPolicyInvalid):
        load_gateway_config(path)
    with pytest.raises(GatewayConfigInvalid):
        load_gateway_config(tmp_path / "missing.toml")
    with pytest.raises(GatewayConfigInvalid, match="two domains"):
        load_gateway_config(write(tmp_path, GOOD + GOOD[GOOD.index("[[domain]]") :]))


@pytest.mark.req("A-36")
def test_material_is_one_line_of_ascii(tmp_path: Path) -> None:
    for text in ("two\nlines", "\u202eevil", "x" * 8193, ""):
        (tmp_path / "file").write_text(text)
        with pytest.raises(GatewayConfigInvalid):
            read_org([tmp_path / "file"])
