"""A campus CA over a fresh store, for the tests of whoever issues; key files are made once per test run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path

from cryptography import x509

from appliance.audit import Actor
from appliance.ca import CertificateAuthority, Issued, Slot
from appliance.checkpoint_keeper import CheckpointKeeper
from appliance.clock import Clock
from appliance.console.auditing import CheckpointRoutes
from appliance.hierarchy import IssuingCa, Role, create_hierarchy, read_issuing
from appliance.settings import CaSettings, Settings
from appliance.store import Store
from appliance.web.routes import Handler
from est import profiles
from est.profiles import Shape
from tests.stores import open_store
from tests.support import NOW, FixedClock, key

PASSPHRASE = b"correct horse"
ACTOR = Actor("proxy", "spiffe://campus.example/proxy/1")
SETTINGS = Settings(ca=CaSettings(pki_base_url="http://pki.campus.example:8080"))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix="campus-")
    create_hierarchy(Path(folder.name), SETTINGS, PASSPHRASE, NOW, key_cost=1024)
    return folder


def home() -> Path:
    """A home with keys and certificates; read only, gone with the process."""
    return Path(_folder().name)


@cache
def issuing() -> tuple[x509.Certificate, dict[Role, IssuingCa]]:
    return read_issuing(home(), SETTINGS, PASSPHRASE)


@contextmanager
def authority(folder: Path, clock: FixedClock | None = None) -> Iterator[tuple[CertificateAuthority, Store]]:
    """The CA over a new store in `folder`."""
    clock = clock or FixedClock()
    store = open_store(f"sqlite:///{folder / 'appliance.db'}", clock)
    root, cas = issuing()
    try:
        yield CertificateAuthority(root=root, issuing=cas, store=store, clock=clock), store
    finally:
        store.close()


def checkpoint_endpoints(store: Store, clock: Clock) -> dict[str, Handler]:
    """The two endpoints about checkpoints that every PKI port has."""
    keeper = CheckpointKeeper(
        store,
        clock,
        key("audit"),
        origin="spiffe://campus.example",
        file=store.path.with_name("checkpoints"),
        seconds=60.0,
        entries=1000,
    )
    return CheckpointRoutes(keeper).endpoints


def ldevid_shape(slot: Slot, name: str = "proxy", lifetime: timedelta = timedelta(days=90)) -> Shape:
    return profiles.ldevid(
        slot.terms(lifetime),
        profiles.name(name),
        key(name).public_key(),
        identifier=f"spiffe://campus.example/proxy/{name}",
    )


async def issue_ldevid(ca: CertificateAuthority, name: str = "proxy") -> Issued:
    return await ca.issue(
        "devices",
        lambda slot: ldevid_shape(slot, name),
        row={"profile": "ldevid", "proxy_id": name, "subject_id": f"spiffe://campus.example/proxy/{name}"},
        actor=ACTOR,
        event="ldevid-issued",
    )
