"""The stock client of SPIFFE for Python, unchanged, at the proxy's Workload API."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.binding import dual_identity
from appliance.binding.facts import Model
from est.keys import spki
from tests.appliance.proxy.spiffe.scene import Scene, run

pytest.importorskip("spiffe", reason="the package spiffe (with grpcio) is not installed: pip install spiffe")

from spiffe import WorkloadApiClient, X509Source  # noqa: E402
from spiffe.spiffe_id.spiffe_id import TrustDomain  # noqa: E402


@pytest.mark.req("A-3", "A-107")
def test_the_stock_client_fetches_and_rotates_an_svid(tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        path = f"unix://{scene.socket}"
        opening = asyncio.create_task(asyncio.to_thread(X509Source, socket_path=path, timeout_in_seconds=20))
        await scene.answer()
        source = await opening
        try:
            before = source.get_x509_context().default_svid
            assert str(before.spiffe_id) == scene.agent
            scene.campus.clock.advance(2700)
            async with asyncio.timeout(20):
                while (after := source.get_x509_context().default_svid).leaf == before.leaf:
                    await asyncio.sleep(0.05)
            assert str(after.spiffe_id) == scene.agent
            for svid, model in ((before, Model.SERVER_MEDIATED), (after, Model.STANDING)):
                dual = dual_identity.of_certificate(svid.leaf)
                assert dual is not None and dual.model is model
                assert isinstance(svid.private_key, ec.EllipticCurvePrivateKey)
                assert spki(svid.leaf) == spki(svid.private_key.public_key())
            assert spki(after.leaf) != spki(before.leaf)
            bundle = source.get_bundle_for_trust_domain(TrustDomain("campus.example"))
            assert bundle is not None and bundle.x509_authorities == {scene.campus.ca.root}
        finally:
            await asyncio.to_thread(source.close)
        client = WorkloadApiClient(path)
        try:
            again = await asyncio.to_thread(client.fetch_x509_svid, timeout=20)
            assert again.leaf == after.leaf
            bundles = await asyncio.to_thread(client.fetch_x509_bundles, timeout=20)
            assert [str(one.trust_domain) for one in bundles.bundles] == ["campus.example"]
        finally:
            await asyncio.to_thread(client.close)

    run(tmp_path, story)
