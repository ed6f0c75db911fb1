"""The published worked example as values, and the ways to damage it: change claims and sign again, flip bits."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.binding import dual_identity, jws, verify
from appliance.binding.facts import NonceRecord, OwnerKey, OwnerRecord
from est.chains import TrustAnchors
from est.signer import KeySigner

VECTORS = Path(__file__).parents[2] / "vectors"
FOLDER = VECTORS / "dual-identity"
EXAMPLE: dict[str, Any] = json.loads((FOLDER / "example.json").read_text())
AT = datetime.fromtimestamp(EXAMPLE["now"] + 5, UTC)
ORIGIN = "spiffe://campus.example"
ISSUER = "urn:campus:ids:1"
SERVER, AGENT, OWNER, PROXY = (EXAMPLE[name] for name in ("server_id", "agent_id", "owner_id", "proxy_id"))
OTHER_AGENT = f"{ORIGIN}/agent/11111111-1111-4111-8111-111111111111"
OTHER_OWNER = f"{ORIGIN}/owner/22222222-2222-4222-8222-222222222222"
OTHER_PROXY = f"{ORIGIN}/proxy/33333333-3333-4333-8333-333333333333"
KEYS = {name: jws.read_ec_jwk(value) for name, value in EXAMPLE["keys"].items()}
LEAF = x509.load_pem_x509_certificate((FOLDER / "good.pem").read_bytes())
CA = x509.load_pem_x509_certificate((FOLDER / "ca.pem").read_bytes())
DOMAIN = verify.TrustDomain(ORIGIN, SERVER, TrustAnchors([CA]))
OWNER_RECORD = OwnerRecord(OWNER, (OwnerKey(EXAMPLE["jkt"]["owner"], KEYS["owner"]),))
NONCE = NonceRecord(EXAMPLE["nonce"], EXAMPLE["jkt"]["agent"], "issue", AGENT, PROXY, AT + timedelta(hours=1))


@cache
def private(name: str) -> ec.EllipticCurvePrivateKey:
    """The published private key of agent, owner, proxy, verifier or ca; a fresh one per run for any other name."""
    path = FOLDER / f"{name}.key.pem"
    if not path.exists():
        return ec.generate_private_key(ec.SECP256R1())
    key = load_pem_private_key(path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def signer(name: str) -> KeySigner:
    return KeySigner(private(name))


def owners(identifier: str) -> OwnerRecord | None:
    return OWNER_RECORD if identifier == OWNER else None


def part(token: str, index: int) -> dict[str, Any]:
    """Header (0) or claims (1) of a token, as they are."""
    text = token.split(".")[index]
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def resign(
    token: str,
    key: str,
    changes: Mapping[str, object] | None = None,
    *,
    without: tuple[str, ...] = (),
    header: Mapping[str, object] | None = None,
) -> str:
    """The token with these claims and header members changed, and signed again by the key of that name."""
    claims = {**part(token, 1), **(changes or {})}
    head = {**part(token, 0), **(header or {})}
    typ = str(head.pop("typ"))
    head.pop("alg")
    kept = {name: value for name, value in claims.items() if name not in without}
    return jws.seal(kept, typ=typ, signer=signer(key), header={k: v for k, v in head.items() if v is not None})


def flips(text: str) -> Iterator[str]:
    """Every text that differs in one bit and is still ASCII."""
    octets = text.encode("ascii")
    for at in range(len(octets)):
        for bit in range(7):
            yield (octets[:at] + bytes((octets[at] ^ 1 << bit,)) + octets[at + 1 :]).decode("ascii")


def certificate(
    *,
    dual: Mapping[str, object] | None = None,
    names: list[x509.GeneralName] | None = None,
    key: ec.EllipticCurvePublicKey | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    extensions: list[x509.ExtensionType] | None = None,
    purposes: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
    ca: str = "ca",
    usage_ca: bool = False,
    crl_sign: bool = False,
    has_usage: bool = True,
) -> x509.Certificate:
    """The example's certificate made again by its CA, with `dual` fields or anything else changed."""
    found = dual_identity.of_certificate(LEAF)
    assert found is not None
    fields = {name: getattr(found, name) for name in found.__dataclass_fields__}
    if extensions is None:
        extensions = [
            one for one, _ in dual_identity.extensions(dual_identity.DualIdentity(**{**fields, **(dual or {})}))
        ]
    usage = x509.KeyUsage(not usage_ca, False, False, False, False, usage_ca, crl_sign, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agent")]))
        .issuer_name(CA.subject)
        .serial_number(77)
        .public_key(key or KEYS["agent"])
        .not_valid_before(not_before or LEAF.not_valid_before_utc)
        .not_valid_after(not_after or LEAF.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=usage_ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names or [x509.UniformResourceIdentifier(AGENT)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(private(ca).public_key()), critical=False)
    )
    if has_usage:
        builder = builder.add_extension(usage, critical=True)
    if purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(private(ca), hashes.SHA256())
