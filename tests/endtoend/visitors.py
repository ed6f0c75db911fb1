"""Everybody who may knock: clients of the device port with every kind of certificate, and without one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from est import csr, transfer
from lab.certificates import common_name, issue
from lab.factory import Factory
from tests.campus import Ask, Campus, Client, leaf_of, lookalike, new_ask, write_identity


def certificates(campus: Campus, folder: Path) -> Mapping[str, tuple[Path, Path] | None]:
    """Files of chain and key by kind of visitor; None = no certificate."""
    ldevid, devices_ca = campus.ldevid, campus.certificates_of("devices")[0]
    device = campus.device()
    found: dict[str, tuple[Path, Path] | None] = {"nobody": None}
    # a self-signed certificate that claims the proxy's name
    names = ldevid.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    now = datetime.now(UTC) - timedelta(hours=1)
    key = spare_key()
    name, ends = common_name("stranger"), now + timedelta(days=30)
    own = issue(key, name, key, name, now=now, not_after=ends, ca=False, extensions=[(names, False)])
    found["self-signed"] = write_identity(folder, [own], key)
    # a device of a manufacturer that nobody told us of
    other = Factory.create("Elsewhere", now=now).make_device("elsewhere-1", now=now, masa="masa.example:443")
    found["unknown-idevid"] = write_identity(folder, [other.certificate, *other.chain[1:]], other.key)
    found["idevid"] = (device / "idevid.pem", device / "idevid.key.pem")
    chain, key = lookalike(ldevid, devices_ca)
    found["lookalike-ldevid"] = write_identity(folder, chain, key)
    for name in ("registrar", "https", "radius"):
        found[f"{name}-server"] = write_identity(folder, campus.certificates_of(name), campus.key_of(name))
    # a registration authority asks for others under labels that want it, and is nobody anywhere else
    key = spare_key()
    request = csr.build(subject=x509.Name([]), key=key, san=None)
    made = campus.ask("est.authority", name="RA", request=transfer.write_base64(request, wrapped=None).decode())
    chain = x509.load_pem_x509_certificates(made["chain_pem"].encode())
    found["registration-authority"] = write_identity(folder, chain, key)
    key = spare_key()
    asked = csr.build(subject=x509.Name([]), key=key, san=None)
    nas = campus.ask("nas.list")[0]["name"]
    pem = x509.load_der_x509_csr(asked).public_bytes(Encoding.PEM).decode()
    made = campus.ask("nas.certify", name=nas, csr_pem=pem)
    found["nas"] = write_identity(folder, x509.load_pem_x509_certificates(made["pem"].encode()), key)
    ask, result = an_agent(campus)
    found["agent"] = write_identity(folder, [leaf_of(result), *campus.certificates_of("agents")], ask.key)
    found["ldevid"] = (campus.state / "ldevid.pem", campus.state / "ldevid.key.pem")
    return found


def an_agent(campus: Campus) -> tuple[Ask, dict[str, object]]:
    """An agent with a credential: its request and the answer."""
    client = campus.as_proxy()
    ask = new_ask(campus, client, campus.owner())
    answer = ask.submit(client)
    client.close()
    assert answer.status == 201, answer
    return ask, answer.json


def clients(campus: Campus, found: Mapping[str, tuple[Path, Path] | None]) -> dict[str, Client]:
    """A client of the device port for each."""
    return {name: campus.client("device", *(files or ())) for name, files in found.items()}


def spare_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())
