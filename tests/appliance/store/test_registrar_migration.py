"""A home of the first version keeps what its registrar knew."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import text

from appliance.registrar import manufacturers as manufacturers_service
from appliance.store import Store, knocks, listed_devices, manufacturers, pledges
from appliance.store.columns import to_micros
from appliance.store.engine import migration_engine
from appliance.store.upgrade import MIGRATIONS
from brski.idevid import read_masa_address
from lab.factory import Factory
from tests.support import NOW, FixedClock


def make_home_of_the_first_version(path: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A database as 0001 left it, with these rows; answers its URL."""
    url = f"sqlite:///{path}"
    path.touch(0o600)
    with migration_engine(url).begin() as connection:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for table, values in rows.items():
            for row in values:
                names = ", ".join(row)
                marks = ", ".join(f":{name}" for name in row)
                connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({marks})"), dict(row))  # noqa: S608
    return url


def test_a_home_of_the_first_version_keeps_everything_it_knows(tmp_path: Path) -> None:
    factory = Factory.create("Acme", now=NOW)
    own, tls = factory.device_root.chain_pem.decode(), factory.tls_root.chain_pem.decode()
    at = to_micros(NOW)
    steps = {"steps": [{"step": "audit-failed", "at": NOW.isoformat(), "ms": 5, "code": "x"}], "nonces": ["n"]}
    knock = {"steps": [{"step": "knocked", "at": NOW.isoformat(), "code": "chain-not-trusted: CN=Other CA"}]}
    old_options = {"ignore_expiry": True, "serials": ["PX-1", "PX-2"], "masas": ["b.example:1"], "masa_addresses": []}
    pledge = {"masa_url": "https://m/x", "created_at": at, "updated_at": at + 7}
    url = make_home_of_the_first_version(
        tmp_path / "a.db",
        {
            "manufacturers": [
                {
                    "id": "m1", "name": "Acme", "anchors_pem": own, "masa_url": "m.example", "masa_tls_anchors_pem": "",
                    "options": json.dumps(old_options), "created_at": at,
                },
                {
                    "id": "m2", "name": "Other", "anchors_pem": own, "masa_url": None, "masa_tls_anchors_pem": tls,
                    "options": None, "created_at": at + 1,
                },
            ],
            "pledges": [
                {
                    "id": "p1", "idevid_issuer": "aa", "serial": "PX-1", "idevid_sha256": "f1", "manufacturer_id": "m1",
                    "state": "audit-passed", "audit_verdict": "forgiven", "timeline": json.dumps(steps), **pledge,
                },
                {
                    "id": "p2", "idevid_issuer": "unverified:f2", "serial": "ZX-1", "idevid_sha256": "f2",
                    "manufacturer_id": None, "state": "seen", "audit_verdict": None, "timeline": json.dumps(knock),
                    **pledge,
                },
            ],
        },
    )  # fmt: skip
    clock = FixedClock()
    for _ in range(2):  # the second start finds nothing to do
        store = Store.open(url, clock)
        try:
            makers = store.read_sync(manufacturers.every)
            found = [manufacturers_service.read(row) for row in makers]
            assert [(one.options.masa_trust, one.options.ignore_expiry) for one in found] == [
                ("both", True), ("anchors", False),
            ]  # fmt: skip
            to = found[0].destination(read_masa_address("m.example"))
            assert to.public_anchors and to.tls_anchors_pem == own
            listed = store.read_sync(lambda tx: listed_devices.of(tx, "m1"))
            assert [(one.serial, one.created_at) for one in listed] == [("PX-1", NOW), ("PX-2", NOW)]
            (record,) = store.read_sync(pledges.every)
            assert (record.id, record.nonces, record.steps[0].code) == ("p1", ("n",), "x")
            assert record.history_override is not None and record.history_override["keys"] == ["*"]
            (knocked,) = store.read_sync(knocks.every)
            assert (knocked.fingerprint, knocked.serial, knocked.maker) == ("f2", "ZX-1", "CN=Other CA")
            assert knocked.detail == "chain-not-trusted" and knocked.is_stranger and knocked.times == 1
            assert knocked.first_seen == NOW
        finally:
            store.close()
