"""A manufacturer that departs from RFC 8995: its MASA, its devices and the option of its entry, over the network."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from brski import Pledge, PledgePolicy, paths, read_dialect, sealed
from est.exchange import Call
from lab.certificates import Identity
from tests.endtoend.attacks.site import Knock, Maker, Site, reason

pytestmark = [pytest.mark.lab, pytest.mark.xdist_group("dialects")]

EVERY = "base64-bodies,legacy-key,loose-dates,long-nonces,untyped-answers"
ONE_BY_ONE = {
    "base64-bodies": (400, "voucher-request-malformed"),
    "legacy-key": (400, "voucher-request-malformed"),
    "untyped-answers": (502, "masa-answer-invalid"),
}
"""What a strict entry makes of a device and MASA that speak it."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site.create(tmp_path_factory.mktemp("dialects"))
    yield made
    made.campus.close()


def speaking(site: Site, name: str, dialect: str, option: str, *words: str) -> Maker:
    """A manufacturer whose MASA speaks `dialect`, in an entry that tolerates `option`."""
    return site.add_maker(name, "--dialect", dialect, *words, options={"dialect": option})


def knock(site: Site, maker: Maker, dialect: str, device: Identity | None = None) -> Knock:
    """A device that speaks it as well."""
    found = site.knock(device or maker.device(), maker)
    policy = PledgePolicy(dialect=read_dialect(dialect))
    found.pledge = Pledge(found.device.signer, found.device.chain, maker.factory.masa_anchors, policy)
    return found


def odd_request(by: Knock) -> Call:
    """Every departure in one request: base64, the old key, a date with a blank, a nonce of 45 octets."""
    leaves: dict[str, Any] = {
        "assertion": "proximity",
        "created-on": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        "nonce": base64.b64encode(secrets.token_bytes(45)).decode(),
        "serial-number": by.serial,
        "proximity-registrar-cert": base64.b64encode(by.line.server.public_bytes(Encoding.DER)).decode(),
    }
    body = sealed.seal(
        json.dumps({"ietf-voucher:voucher": leaves}).encode(), paths.VOUCHER_CMS_JSON, signer=by.device.signer,
        certificate=by.device.certificate, certificates=by.device.issuers, now=datetime.now(UTC),
    )  # fmt: skip
    return Call("POST", paths.REQUEST_VOUCHER, paths.VOUCHER_CMS_JSON, {"accept": "*/*"}, base64.b64encode(body))


@pytest.mark.req("B-201", "B-202", "B-204", "B-211", "B-255", "B-338", "B-424")
@pytest.mark.parametrize("log_by_url", [(), ("--log-by-url",)], ids=["log in the answer", "log at a URL"])
def test_a_device_of_a_maker_that_departs_in_everything_comes_in(site: Site, log_by_url: tuple[str, ...]) -> None:
    maker = speaking(site, f"odd{len(log_by_url)}", EVERY, EVERY, *log_by_url)
    odd = knock(site, maker, EVERY)
    asked = odd_request(odd)
    granted = odd.voucher(asked)
    assert (granted.status, granted.media_type) == (200, paths.VOUCHER_CMS_JSON)
    assert base64.b64decode(granted.body, validate=True)[:1] == b"\x30"  # answered as it asked
    assert odd.voucher(asked).body == granted.body
    assert maker.asked(odd.serial) == 1
    assert odd.status().status == odd.enroll().status == 200
    shown = site.shown(odd.serial)
    assert (shown["state"], shown["audit_verdict"]) == ("enrolled", "accepted")
    artefacts = shown["artefacts"]
    assert {one["serial_number"] for one in artefacts.values()} == {odd.serial}, artefacts


@pytest.mark.req("B-201", "B-202", "B-211")
@pytest.mark.parametrize("switch", ONE_BY_ONE)
def test_one_switch_of_the_entry_lets_in_what_the_strict_entry_refuses(site: Site, switch: str) -> None:
    maker = speaking(site, switch, switch, "")
    device = maker.device()
    first = knock(site, maker, switch, device)
    refused = first.voucher()
    assert (refused.status, reason(refused)) == ONE_BY_ONE[switch]
    # the option counts from the next request on
    site.campus.ask("manufacturers.set", name=switch, options={"dialect": switch})
    knock(site, maker, switch, device).bootstrap()
    assert site.shown(first.serial)["audit_verdict"] == "accepted"
