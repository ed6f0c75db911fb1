"""Certificates of NAS for RadSec: from the infrastructure CA, clientAuth only, named `.../nas/ID`, the NAS as CN."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance.audit import Actor
from appliance.ca import CertificateAuthority, PendingRow, Slot, require_own_key
from appliance.errors import NotFound, RequestMalformed
from appliance.store import nas
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est import csr, profiles
from est.csr import Csr


class NasCertificates:
    """Issues them; revocation is that of every certificate (`appliance certs revoke`), or comes with `nas remove`."""

    def __init__(self, ca: CertificateAuthority, store: Store, *, origin: str, days: int) -> None:
        self._ca = ca
        self._store = store
        self._origin = origin
        self._life = timedelta(days=days)

    async def certify(self, name: str, csr_pem: str, actor: Actor) -> dict[str, Any]:
        """A certificate for the key of a request; names in the request count for nothing.

        Raises NotFound for a NAS that is not on the list, RequestMalformed, KeyInUse, and what est.csr.read and the CA
        raise.
        """
        try:
            request = x509.load_pem_x509_csr(csr_pem.encode())
        except ValueError as cause:
            raise RequestMalformed("the file holds no certification request in PEM") from cause
        asked = csr.read(request.public_bytes(Encoding.DER))
        row = await self._store.read(partial(_require, name=name))
        identifier = f"{self._origin}/nas/{row.id}"

        def shape(slot: Slot) -> profiles.Shape:
            return _shape(slot, asked, name, identifier, self._life)

        def begin(tx: Tx, pending: PendingRow) -> None:
            if _require(tx, name=name).id != row.id:
                raise NotFound(f"there is no NAS named {name} any more")
            require_own_key(tx, pending, identifier)

        issued = await self._ca.issue(
            "infrastructure",
            shape,
            row={"profile": nas.PROFILE, "subject_id": identifier},
            actor=actor,
            event="infrastructure-certificate-issued",
            fields={"nas": name, "identifier": identifier},
            on_pending=begin,
        )
        chain = (issued.certificate, issued.chain[0])
        return {
            "name": name,
            "identifier": identifier,
            "serial": f"{issued.serial:x}",
            "not_after": issued.certificate.not_valid_after_utc.isoformat(),
            "pem": "".join(one.public_bytes(Encoding.PEM).decode() for one in chain),
        }


def _shape(slot: Slot, asked: Csr, name: str, identifier: str, life: timedelta) -> profiles.Shape:
    return profiles.infrastructure_client(
        slot.terms(life), profiles.name(name), asked.public_key, identifier=identifier
    )


def _require(tx: Tx, *, name: str) -> nas.NasRow:
    for row in nas.every(tx):
        if row.name == name:
            return row
    raise NotFound(f"there is no NAS named {name}: appliance nas add {name} ADDRESS")
