"""Settings: precedence, origins, refusal of what is unknown."""

from __future__ import annotations

import tomllib

import pytest

from appliance.binding.identifier import Kind, read_kind
from appliance.settings import SettingsInvalid, describe_settings, load_settings, sample_file


def test_flag_beats_environment_beats_file_beats_default(tmp_path, monkeypatch):
    (tmp_path / "appliance.toml").write_text("[web]\ndevice_port = 1001\nconsole_port = 1002\npki_port = 1003\n")
    monkeypatch.setenv("APPLIANCE_WEB__CONSOLE_PORT", "2002")
    monkeypatch.setenv("APPLIANCE_WEB__PKI_PORT", "2003")
    loaded = load_settings(tmp_path, ["web.pki_port=3003"])
    web = loaded.settings.web
    assert (web.device_port, web.console_port, web.pki_port, web.decision_port) == (1001, 2002, 3003, 8444)
    assert [loaded.origins[f"web.{name}_port"] for name in ("device", "console", "pki", "decision")] == [
        "file",
        "environment",
        "flag",
        "default",
    ]


@pytest.mark.parametrize(
    "assignment", ["web.devise_port=1", "nonsense", "web.device_port=many", "web.device_port=70000", "x.y=1"]
)
def test_a_wrong_assignment_stops_the_start_and_names_the_key(tmp_path, assignment):
    with pytest.raises(SettingsInvalid) as refused:
        load_settings(tmp_path, [assignment])
    assert assignment.partition("=")[0].split(".")[-1] in refused.value.detail


def test_an_unknown_key_is_answered_with_its_nearest_neighbour(tmp_path):
    with pytest.raises(SettingsInvalid, match=r"did you mean web\.device_port"):
        load_settings(tmp_path, ["web.devise_port=1"])


def test_the_sample_file_is_valid_and_names_every_setting(tmp_path):
    text = sample_file({"domain.trust_domain": "a.example"})
    assert tomllib.loads(text)["domain"] == {"trust_domain": "a.example"}
    for dotted, _, description in describe_settings():
        assert dotted.partition(".")[2] in text and description
    (tmp_path / "appliance.toml").write_text(text.replace("\n# ", "\n# "))
    assert load_settings(tmp_path).settings.domain.trust_domain == "a.example"


def test_lists_are_comma_separated_on_the_command_line(tmp_path):
    assert load_settings(tmp_path, ["web.names=a.example, 192.0.2.1"]).settings.web.names == ("a.example", "192.0.2.1")


@pytest.mark.req("W-1", "W-10", "W-12")
@pytest.mark.parametrize(
    "assignment",
    [
        'domain.trust_domain=Campus Example"',
        "domain.trust_domain=CAMPUS.example",
        "domain.trust_domain=10.1.2.3",
        "domain.trust_domain=campus_1.example",
        f"domain.trust_domain={'a' * 61}.example",
        "domain.trust_domain=",
        f"domain.organization={'o' * 65}",
        "identity.oid_arc=2.25.7",
        "identity.oid_arc=1.3.06",
        "identity.oid_arc=none",
        "identity.server_id=https://a b",
        "radius.server_name=radius example",
    ],
)
def test_a_name_that_no_identifier_or_certificate_could_hold_stops_the_start(tmp_path, assignment):
    with pytest.raises(SettingsInvalid, match=assignment.partition("=")[0]):
        load_settings(tmp_path, [assignment])


def test_the_longest_trust_domain_leaves_room_for_an_owner(tmp_path):
    trust_domain = f"{'a' * 60}.example"
    origin = load_settings(tmp_path, [f"domain.trust_domain={trust_domain}"]).settings.origin
    owner = f"{origin}/owner/00000000-0000-4000-8000-000000000000"
    assert len(owner) == 120 and read_kind(owner, Kind.OWNER).uri == owner
