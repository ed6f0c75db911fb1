"""Looks at the artefacts of a story from outside: what a stranger with the right anchors can verify by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from appliance.binding import possession
from appliance.binding.facts import Limits, OwnerKey, OwnerRecord
from appliance.binding.verify import TrustDomain, verify_certificate
from brski import sealed, voucher, voucher_request
from brski.errors import BrskiError
from est import chains
from est.chains import TrustAnchors
from est.errors import EstError, Refusal
from est.keys import spki_sha256
from lab.factory import make_root


def load(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates of a file, PEM or DER."""
    content = path.read_bytes()
    if content.startswith(b"-----"):
        return tuple(x509.load_pem_x509_certificates(content))
    return (x509.load_der_x509_certificate(content),)


def uri(path: Path) -> str:
    """The one URI of a certificate's subjectAltName."""
    names = load(path)[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (found,) = names.get_values_for_type(x509.UniformResourceIdentifier)
    return found


def serial(path: Path) -> str:
    """A certificate's serial number, hex."""
    return f"{load(path)[0].serial_number:x}"


def voucher_facts(state: Path, masa_anchors: Path, campus: tuple[Path, ...]) -> str:
    """What a proxy's stored voucher says, verified again: signer, serial number, nonce as sent, whom it pins."""
    now = datetime.now(UTC)
    try:
        found, opened = voucher.unseal(*_artefact(state, "voucher"))
        chains.check(
            opened.signer, opened.certificates[1:], TrustAnchors(load(masa_anchors)), at=now, policy=chains.SIGNER
        )
        sent, _ = voucher_request.unseal(*_artefact(state, "voucher-request"))
    except (BrskiError, EstError) as refused:
        return f"refused: {refused.detail}"
    nonce = "nonce as sent" if found.nonce and found.nonce == sent.nonce else "nonce differs"
    ours = {spki_sha256(certificate) for path in campus for certificate in load(path)}
    pinned = "pins this campus" if spki_sha256(found.pin()) in ours else "pins somebody else"
    return f"serial {found.serial_number}, {nonce}, {pinned}"


def _artefact(state: Path, name: str) -> tuple[bytes, str]:
    """What a proxy keeps under this name, in the format it asked in, and its media type."""
    file = next((path for path in (state / f"{name}.cms", state / f"{name}.vjj") if path.exists()), state / name)
    body = file.read_bytes()
    return body, sealed.media_type_of(body)


def verified_uri(certificate: Path, issuer: Path, root: Path) -> str:
    """The URI in a certificate whose chain issuer <- root was verified just now, or why it was not."""
    leaf, *rest = load(certificate)
    try:
        chains.check(leaf, [*rest, *load(issuer)], TrustAnchors(load(root)), at=datetime.now(UTC), policy=chains.CLIENT)
    except EstError as refused:
        return f"refused: {refused.detail}"
    return uri(certificate)


def dual_facts(
    chain: Path, root: Path, statement: Path, owner_id: str, server_id: str, *, backdating_seconds: int
) -> str:
    """What a stranger learns from an agent's certificate, the campus root and the owner's public key, offline."""
    leaf, *intermediates = load(chain)
    key = possession.unseal(statement.read_text(encoding="ascii").strip())
    owner = OwnerRecord(owner_id, [OwnerKey(key.jkt, key.key)])
    origin = owner_id.partition("/owner/")[0]
    try:
        report = verify_certificate(
            leaf,
            intermediates,
            TrustDomain(origin, server_id, TrustAnchors(load(root))),
            lambda asked: owner if asked == owner_id else None,
            at=datetime.now(UTC),
            limits=Limits(backdating_seconds=backdating_seconds),
        )
    except Refusal as refused:
        return f"refused: {refused.reason}: {refused.detail}"
    if report.approval is None or report.owner_key_jkt != key.jkt:
        return "no approval by this owner inside"
    return f"agent key and owner key of {report.owner_id}, approval verified offline"


def forge_stranger(chain: Path, folder: Path) -> tuple[Path, Path]:
    """A certificate with every name and extension of a real one, from a CA with the same names and other keys.

    Answers the files of chain and key.
    """
    real, issuer = load(chain)[0], load(chain)[1]
    now = datetime.now(UTC)
    ca = make_root("stranger", now=now)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(real.subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(real.serial_number)
        .not_valid_before(real.not_valid_before_utc)
        .not_valid_after(real.not_valid_after_utc)
    )
    for extension in real.extensions:
        builder = builder.add_extension(extension.value, extension.critical)
    forged = builder.sign(ca.key, real.signature_hash_algorithm)  # type: ignore[arg-type]
    folder.mkdir(mode=0o700)
    chain_file, key_file = folder / "chain.pem", folder / "key.pem"
    chain_file.write_bytes(forged.public_bytes(Encoding.PEM))
    key_file.touch(0o600)
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return chain_file, key_file
