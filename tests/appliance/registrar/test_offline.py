"""A site that goes offline: vouchers fetched over HTTPS, then the MASA is gone and the device comes over TLS."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from brski import Pledge, PledgePolicy, VoucherNonceless
from brski.masa import MasaPolicy
from est import chains, csr
from lab import factory as lab_factory
from lab.mock_masa import MockMasa
from tests.appliance.registrar.test_dialogue import BORN, open_site
from tests.appliance.registrar.world import ADMIN, campus_keys, enroll_call


@pytest.mark.lab
@pytest.mark.req("B-270", "B-285", "B-338")
def test_a_device_comes_in_after_its_masa_went_away(tmp_path: Path) -> None:
    async def run() -> None:
        maker = lab_factory.load_or_create(tmp_path / "maker", now=BORN)
        _, root, *_ = campus_keys(BORN)
        masa = MockMasa(tmp_path / "maker", policy=MasaPolicy(registrar_anchors=chains.TrustAnchors([root])))
        port = await masa.start()
        site = await open_site(tmp_path, port, maker, prefetch="masa-silent")
        part = site.world.part
        device = site.make_device("PX-1")
        key = (chains.ski_of(maker.device_ca.certificate) or b"").hex()
        await part.expected.import_csv(f"manufacturer,serial,idevid-issuer\nAcme,PX-1,{key}\n", actor=ADMIN)
        (row,) = await part.prefetch.fetch("Acme", await part.prefetch.lacking("Acme"), actor=ADMIN)
        assert row["outcome"] == "fetched", row
        await masa.stop()

        careful = Pledge(device.signer, device.chain, maker.masa_anchors)
        pledge = Pledge(device.signer, device.chain, maker.masa_anchors, PledgePolicy(accept_nonceless=True))
        client = await site.client(device)
        send = partial(asyncio.to_thread, client.send)
        asked = pledge.voucher_request(client.server, nonce=bytes(range(16)), now=datetime.now(UTC))
        reply = await send(asked)
        assert reply.status == 200, reply
        # a pledge that wants a fresh voucher still refuses this one
        with pytest.raises(VoucherNonceless):
            careful.accept_voucher(reply, asked, site.world.tls_chain, now=datetime.now(UTC))
        received = pledge.accept_voucher(reply, asked, site.world.tls_chain, now=datetime.now(UTC))
        assert received.nonce is None and received.expires_on is not None
        assert (await send(pledge.voucher_status(True))).status == 200
        new_key = ec.generate_private_key(ec.SECP256R1())
        reply = await send(enroll_call(csr.build(subject=x509.Name([]), key=new_key)))
        assert reply.status == 200, reply
        client.close()
        shown = await site.world.row()
        assert shown["history"]["source"] == "fetched ahead" and shown["state"] == "enrolled"
        await site.listener.close(1.0)
        await part.close()
        site.world.close()

    asyncio.run(run())
