"""SPIFFE bundles: published ones are read as their names say, ours is read back, nonsense is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from appliance.binding import jws, spiffe_bundle
from appliance.binding.errors import BindingError
from appliance.binding.spiffe_bundle import SpiffeBundle
from tests.appliance.authority import issuing
from tests.appliance.binding.example import VECTORS
from tests.support import key

BUNDLES = VECTORS / "wit" / "go-spiffe" / "bundles"
AUTHORITY = issuing()[1]["agents"].certificate
OURS = SpiffeBundle((AUTHORITY,), {"k1": key("wit").public_key()}, 7, 300)


def test_a_published_bundle_gives_its_authority_and_its_wit_keys() -> None:
    found = spiffe_bundle.read((BUNDLES / "spiffebundle_valid_with_wit.json").read_text())
    (authority,) = found.authorities
    assert authority.subject.rfc4514_string() == "O=SPIFFE,C=US"
    assert set(found.wit_keys) == {"uNhqAaPI7NDn7IHOsa2ac1BF4O5qGxjZ", "y3UHKFp0WqPpG7gVr3FKieiEzwH8fTMm"}
    assert (found.sequence, found.refresh_hint_seconds) == (1, 60)


@pytest.mark.parametrize(("name", "good"), [
    ("spiffebundle_valid_2.json", True), ("spiffebundle_missing_kid.json", False),
    ("spiffebundle_multiple_x509.json", False), ("spiffebundle_no_keys.json", False),
])  # fmt: skip
def test_published_bundles_are_judged_as_their_names_say(name: str, good: bool) -> None:
    text = (BUNDLES / name).read_text()
    if good:
        assert isinstance(spiffe_bundle.read(text), SpiffeBundle)
    else:
        with pytest.raises(BindingError):
            spiffe_bundle.read(text)


def test_every_published_bundle_is_looked_at() -> None:
    names = {path.name for path in Path(BUNDLES).iterdir()}
    assert len(names) == 5


def test_ours_is_read_back_and_carries_no_private_member() -> None:
    text = spiffe_bundle.write(OURS)
    assert spiffe_bundle.read(text) == OURS
    for one in json.loads(text)["keys"]:
        assert not one.keys() & {"d", "k"} and one["use"] in ("x509-svid", "wit-svid")


DOCUMENT: dict[str, Any] = json.loads(spiffe_bundle.write(OURS))
X509, WIT = DOCUMENT["keys"]
OTHER = jws.jwk(key("other").public_key())


@pytest.mark.parametrize("keys", [
    None, {}, [1], [{"use": "x509-svid"}], [{**X509, "x5c": []}], [{**X509, "x5c": "AA"}], [{**X509, "x5c": ["!"]}],
    [{**X509, "x5c": ["AAAA"]}], [{**X509, "x5c": X509["x5c"] * 2}], [{**X509, **OTHER}],
    [{**WIT, "kid": ""}], [{**WIT, "kid": 1}], [{**WIT, "y": "AA"}], [WIT, {**OTHER, "use": "wit-svid", "kid": "k1"}],
    [{**WIT, "d": "AAAA"}], [{"use": "jwt-svid", **OTHER}], [{}] * 257,
])  # fmt: skip
def test_whatever_is_no_bundle_is_refused(keys: Any) -> None:
    with pytest.raises(BindingError):
        spiffe_bundle.read(json.dumps({"keys": keys}))


@pytest.mark.parametrize("text", [
    "", "[]", "{}", '{"keys": [], "spiffe_sequence": -1}', '{"keys": [], "spiffe_refresh_hint": "1"}',
    '{"keys": "\\ud800"}',
])  # fmt: skip
def test_a_document_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BindingError):
        spiffe_bundle.read(text)


def test_keys_of_a_use_that_is_not_known_are_left_out() -> None:
    assert spiffe_bundle.read(json.dumps({"keys": [{"use": "enc"}, {"kty": "RSA"}]})).wit_keys == {}
