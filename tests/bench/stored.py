"""A store full of certificates, written past the appliance: a million rows in a minute or two."""

from __future__ import annotations

import random
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.audit import Actor, AuditEvent, body_of

ORIGIN = "spiffe://campus.example"
_HOUR = 3_600_000_000
_COLUMNS = ("issuer_role", "issuer_aki", "serial", "profile", "subject_id", "agent_id", "owner_id", "proxy_id", "state",
            "tbs_sha256", "cert_sha256", "der", "spki_sha256", "csr_sha256", "not_before", "not_after", "txn", "model",
            "created_at", "revoked_at", "revocation_reason")  # fmt: skip
_INSERT = f"INSERT INTO certificates ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
LDEVID_BYTES, AGENT_BYTES = 700, 1700
"""What certificates of ours have, about."""
SHEET_BYTES = 811
"""A certificate that names two parties in an extension, as the goal for the size of the database was set with."""
DEPARTMENTS, OWNERS, AGENTS, PROXIES = 50, 1000, 20_000, 3000


@dataclass(frozen=True, slots=True)
class Stock:
    """How many certificates, of these revoked and live, of these good and live; the rest has expired.

    Live ones are LDevIDs (90 days); four fifths of the expired ones are agents' (8 hours).
    """

    total: int = 1_000_000
    revoked: int = 100_000
    live: int = 100_000


@dataclass(frozen=True, slots=True)
class Sample:
    """Serial numbers (as stored) to ask about, and what people may search for."""

    good: list[str]
    revoked: list[str]
    keys: list[str]
    owners: list[str]
    agents: list[str]
    proxies: list[str]


def measure_rows(database: Path, aki: bytes, count: int) -> tuple[int, int]:
    """Write so many certificates of SHEET_BYTES, then what their issuance tells the audit log.

    Answers the octets that the database file grew by for either. Indexes are kept while rows come, as in life.
    """
    chance = random.Random(1)
    people = Sample([], [], [], _names(chance, "owner", OWNERS), _names(chance, "agent", AGENTS),
                    _names(chance, "proxy", PROXIES))  # fmt: skip
    now = time.time_ns() // 1000
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        before = database.stat().st_size
        connection.execute("BEGIN")
        kinds = ["sheet"] * count
        connection.executemany(_INSERT, _rows({"agents": aki}, kinds, people, chance, now, sampled=count))
        connection.execute("COMMIT")
        certificates = database.stat().st_size
        seq = connection.execute("SELECT max(seq) FROM audit").fetchone()[0]
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?)", _told(seq, count, people, chance, now))
        connection.execute("COMMIT")
    return certificates - before, database.stat().st_size - certificates


def _told(seq: int, count: int, people: Sample, chance: random.Random, now: int) -> Iterator[tuple[Any, ...]]:
    for at in range(count):
        proxy = people.proxies[at % PROXIES]
        actor = Actor("proxy", proxy, f"{chance.getrandbits(256):064x}", "10.20.30.40")
        serial, request_id = f"{chance.getrandbits(127):032x}", f"{chance.getrandbits(64):016x}"
        digests = [f"{chance.getrandbits(256):064x}" for _ in range(3)]
        pending = {"issuer": "devices", "profile": "ldevid", "tbs_sha256": digests[0]}
        issued = {"cert_sha256": digests[1], "csr_sha256": digests[2], "issuer": "devices", "label": "",
                  "linked": False, "pending": seq + 2 * at + 1, "profile": "ldevid", "proxy": proxy}  # fmt: skip
        for step, (event, fields) in enumerate((("certificate-pending", pending), ("ldevid-renewed", issued)), 1):
            event_ = AuditEvent(event, actor, serial, request_id=request_id, fields=fields)
            number = seq + 2 * at + step
            body = body_of(number, "2026-11-28T20:02:16.337387Z", event_)
            yield number, now, event, body, secrets.token_bytes(32), secrets.token_bytes(32)


def fill(database: Path, aki_of: dict[str, bytes], stock: Stock, *, seed: int = 1) -> Sample:
    """Write owners and certificates; indexes are made anew at the end, which is quicker than keeping them."""
    chance = random.Random(seed)
    sample = Sample([], [], [], _names(chance, "owner", OWNERS), _names(chance, "agent", AGENTS),
                    _names(chance, "proxy", PROXIES))  # fmt: skip
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        execute = connection.execute
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-1000000"):
            execute(f"PRAGMA {pragma}").fetchall()
        indexes = execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'certificates' AND sql NOT NULL"
        ).fetchall()
        execute("BEGIN")
        for name, _ in indexes:
            execute(f"DROP INDEX {name}")
        now = time.time_ns() // 1000
        connection.executemany(
            "INSERT INTO owners (id, identifier, ref, name, kind, department, state, created_at, updated_at)"
            " VALUES (?, ?, ?, 'Somebody', 'person', ?, 'active', ?, ?)",
            [(str(uuid.uuid4()), one, f"owner-{at}", f"Department {at % DEPARTMENTS}", now, now)
             for at, one in enumerate(sample.owners)],
        )  # fmt: skip
        kinds = ["revoked"] * stock.revoked + ["live"] * stock.live
        kinds += ["expired"] * (stock.total - len(kinds))
        chance.shuffle(kinds)  # as life would have mixed them
        sampled = max(1, stock.total // 50_000)
        connection.executemany(_INSERT, _rows(aki_of, kinds, sample, chance, now, sampled=sampled))
        for _, sql in indexes:
            execute(sql)
        execute("COMMIT")
        execute("PRAGMA journal_mode=WAL").fetchall()
    return sample


def _names(chance: random.Random, kind: str, count: int) -> list[str]:
    return [f"{ORIGIN}/{kind}/{uuid.UUID(int=chance.getrandbits(128), version=4)}" for _ in range(count)]


def _rows(
    aki_of: dict[str, bytes], kinds: list[str], sample: Sample, chance: random.Random, now: int, *, sampled: int
) -> Iterator[tuple[Any, ...]]:
    ders = {size: secrets.token_bytes(size) for size in (LDEVID_BYTES, AGENT_BYTES, SHEET_BYTES)}
    for at, kind in enumerate(kinds):
        is_agent = kind == "sheet" or (kind == "expired" and at % 5 != 0)
        size = SHEET_BYTES if kind == "sheet" else AGENT_BYTES if is_agent else LDEVID_BYTES
        created = now - (len(kinds) - at) * 1000
        life = 90 * 24 * _HOUR
        if kind == "expired":
            life = 8 * _HOUR if is_agent else life
            created -= life + 24 * _HOUR
        serial = (chance.getrandbits(126) | 1 << 124).to_bytes(16, "big")
        digests = chance.randbytes(128)
        proxy = sample.proxies[at % PROXIES]
        agent = sample.agents[at % AGENTS] if is_agent else None
        if kind != "expired" and at % sampled == 0:
            (sample.revoked if kind == "revoked" else sample.good).append(serial.hex())
            sample.keys.append(digests[64:96].hex())
        yield (
            "agents" if is_agent else "devices", aki_of["agents" if is_agent else "devices"], serial,
            "agent" if is_agent else "ldevid", agent or proxy, agent,
            sample.owners[at // 7 % OWNERS] if is_agent else None, proxy,
            "revoked" if kind == "revoked" else "issued", digests[:32], digests[32:64],
            ders[size], digests[64:96], digests[96:], created, created + life,
            str(at) if is_agent else None, "agent-mediated" if is_agent else None, created,
            created + 1000 if kind == "revoked" else None, "superseded" if kind == "revoked" else None,
        )  # fmt: skip
