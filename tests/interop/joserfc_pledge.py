"""A pledge whose JWS are joserfc's alone: asks for a voucher and verifies it. Nothing of ours is imported.

usage: joserfc_pledge.py HOST PORT IDEVID.pem IDEVID.key.pem MASA_ANCHORS.pem WORK

One TLS connection: the registrar's certificate is taken as it comes, named in the request, and believed when the
voucher pins its issuer. Prints one line per step; exit 0 when the voucher holds.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import ssl
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from joserfc import jws
from joserfc.jwk import ECKey

TYPE = "application/voucher-jws+json"


class Roomy(jws.JWSRegistry):
    """joserfc bounds a header to 512 octets, which no x5c fits into."""

    max_header_length = 16_384


def b64(certificate: x509.Certificate) -> str:
    return base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()


def main(host: str, port: str, idevid: str, key: str, anchors: str, work: str) -> None:
    chain = x509.load_pem_x509_certificates(Path(idevid).read_bytes())
    serial = str(chain[0].subject.get_attributes_for_oid(NameOID.SERIAL_NUMBER)[0].value)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(idevid, key)
    connection = http.client.HTTPSConnection(host, int(port), context=context, timeout=30)
    connection.connect()
    connection.auto_open = 0  # type: ignore[assignment]
    registrar = x509.load_der_x509_certificate(connection.sock.getpeercert(True))

    nonce = base64.b64encode(os.urandom(16)).decode()
    request = {
        "created-on": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "assertion": "proximity",
        "serial-number": serial,
        "nonce": nonce,
        "proximity-registrar-cert": b64(registrar),
    }
    header = {"alg": "ES256", "typ": "voucher-jws+json", "x5c": [b64(one) for one in chain]}
    sealed = jws.serialize_json(
        [{"protected": header}],
        json.dumps({"ietf-voucher-request:voucher": request}).encode(),
        ECKey.import_key(Path(key).read_bytes()),
    )
    body = json.dumps(sealed).encode()
    (Path(work) / "pvr.vjj").write_bytes(body)
    print(f"asking: serial {serial}, nonce {nonce}", flush=True)

    for _ in range(20):
        connection.request("POST", "/.well-known/brski/requestvoucher", body, {"Content-Type": TYPE, "Accept": TYPE})
        answer = connection.getresponse()
        reply = answer.read()
        if answer.status != 202:
            break
        print("waiting: 202", flush=True)
        time.sleep(1)
    if answer.status != 200 or answer.getheader("Content-Type") != TYPE:
        raise SystemExit(f"refused: {answer.status} {answer.getheader('Content-Type')} {reply[:300]!r}")
    (Path(work) / "voucher.vjj").write_bytes(reply)

    voucher = check(json.loads(reply), x509.load_pem_x509_certificates(Path(anchors).read_bytes()))
    assert voucher["serial-number"] == serial, "the voucher is for another device"
    assert voucher["nonce"] == nonce, "the voucher is for another request"
    pin = x509.load_der_x509_certificate(base64.b64decode(voucher["pinned-domain-cert"], validate=True))
    registrar.verify_directly_issued_by(pin)
    print(f"voucher: {voucher['assertion']}, pins {pin.subject.rfc4514_string()}", flush=True)

    status = json.dumps({"version": 1, "status": True})
    connection.request("POST", "/.well-known/brski/voucher_status", status, {"Content-Type": "application/json"})
    told = connection.getresponse()
    told.read()
    if told.status != 200:
        raise SystemExit(f"refused: voucher_status {told.status}")
    print("done", flush=True)


def check(sealed: dict[str, object], anchors: list[x509.Certificate]) -> dict[str, str]:
    """The voucher in a JWS whose signer an anchor issued; joserfc verifies the signature with the key out of x5c."""
    (one,) = sealed["signatures"]  # type: ignore[misc]
    protected = one["protected"]
    header = json.loads(base64.urlsafe_b64decode(protected + "=" * (-len(protected) % 4)))
    signer = x509.load_der_x509_certificate(base64.b64decode(header["x5c"][0], validate=True))
    issuer = next(one for one in anchors if one.subject == signer.issuer)
    signer.verify_directly_issued_by(issuer)
    key = ECKey.import_key(signer.public_bytes(Encoding.PEM).decode())
    opened = jws.deserialize_json(sealed, key, registry=Roomy(algorithms=["ES256"]))
    document = json.loads(opened.payload)
    assert list(document) == ["ietf-voucher:voucher"], "not a voucher"
    found = document["ietf-voucher:voucher"]
    assert isinstance(found, dict)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
    assert not {"brski", "est", "appliance", "lab"} & {name.partition(".")[0] for name in sys.modules}
