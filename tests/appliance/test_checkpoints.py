"""Checkpoints: what was signed once is there for ever, and whoever kept one notices if it is not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance import audit, checkpoint
from appliance.audit import Actor, AuditEvent, AuditRow
from appliance.binding import jws
from appliance.binding.errors import BindingError
from appliance.checkpoint_keeper import CheckpointKeeper, LogRolledBack, read_tokens
from appliance.errors import AuditBroken, NotFound
from est.errors import Refusal
from est.signer import KeySigner
from tests.stores import open_store
from tests.support import FixedClock, key

ADMIN = Actor("administrator", "uid 0")
ORIGIN = "spiffe://campus.example"
KEY = key("audit").public_key()


class Log:
    """A store with an audit log and a keeper of checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "elsewhere" / "checkpoints.jsonl"
        self.clock = FixedClock()
        self.open()

    def open(self) -> None:
        self.store = open_store(f"sqlite:///{self.folder / 'a.db'}", self.clock)
        self.keeper = self.keep()

    def keep(self, name: str = "audit", **more: Any) -> CheckpointKeeper:
        wanted: dict[str, Any] = {"origin": ORIGIN, "file": self.file, "seconds": 60.0, "entries": 1000, **more}
        return CheckpointKeeper(self.store, self.clock, key(name), **wanted)

    def grow(self, count: int) -> None:
        for number in range(count):
            event = AuditEvent("owner-added", ADMIN, object=f"owner {number} é", fields={"number": number})
            self.store.write_sync(lambda tx, e=event: audit.append(tx, e))

    def rows(self) -> list[AuditRow]:
        return self.store.read_sync(lambda tx: list(audit.rows(tx)))

    def ask(self, name: str, *arguments: Any, **more: Any) -> Any:
        return asyncio.run(getattr(self.keeper, name)(*arguments, **more))

    def sql(self, *statements: tuple[str, tuple[Any, ...]]) -> None:
        self.store.close()
        with sqlite3.connect(self.folder / "a.db") as raw:
            for text, values in statements:
                raw.execute(text, values)
        raw.close()
        self.open()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    made.grow(6)
    yield made
    made.store.close()


def chained_anew(rows: list[AuditRow], change: Callable[[dict[str, Any]], None], at: int) -> list[AuditRow]:
    """What somebody who can write the store would leave: one entry edited, every hash after it computed anew."""
    previous, found = bytes(32), []
    for row in rows:
        entry = row.entry
        if row.seq == at:
            change(entry)
        body = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        digest = hashlib.sha256(previous + body.encode()).digest()
        found.append(AuditRow(row.seq, row.time, row.event, body, previous, digest))
        previous = digest
    return found


@pytest.mark.req("A-112")
def test_a_checkpoint_is_signed_by_a_key_of_its_own_and_says_how_long_the_log_is_and_what_it_holds(log: Log) -> None:
    token = log.ask("sign")
    header = jws.read(token).header
    assert header == {"alg": "ES256", "typ": "audit-checkpoint+jwt", "kid": jws.jkt(KEY)}
    signed = checkpoint.unseal(token, KEY, origin=ORIGIN)
    assert (signed.size, signed.head, signed.issued_at) == (6, log.rows()[-1].hash, log.clock.now())
    assert log.ask("sign") == token, "nothing came since"
    assert log.keeper.jwk["kid"] == jws.jkt(KEY) and "d" not in log.keeper.jwk
    log.grow(1)
    assert checkpoint.unseal(log.ask("sign"), KEY).size == 7
    assert log.ask("verify") == {"ok": True, "entries": 7, "head": log.rows()[-1].hash.hex(), "checkpoints": 2}


def test_it_is_signed_when_time_or_entries_say_so_and_not_when_nothing_came(log: Log) -> None:
    def sizes() -> list[int]:
        return [row["size"] for row in log.ask("listed")]

    look = log.keeper._look  # run() does nothing but wait and call it
    asyncio.run(look())
    assert sizes() == [6]
    log.grow(2)
    asyncio.run(look())
    assert sizes() == [6], "not yet"
    log.clock.advance(61)
    asyncio.run(look())
    log.clock.advance(1000)
    asyncio.run(look())
    assert sizes() == [6, 8]
    log.keeper = log.keep(entries=3)
    asyncio.run(log.keeper._look())
    log.grow(3)
    asyncio.run(log.keeper._look())
    assert sizes() == [6, 8, 11]


def test_the_task_signs_by_itself_and_goes_on_after_a_failure(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> int:
        keeper = log.keep(seconds=0.02)
        blocked = log.file.parent
        blocked.write_text("a file where the folder should be")
        task = asyncio.create_task(keeper.run())
        while "checkpoint-not-kept" not in caplog.text:
            await asyncio.sleep(0.01)
        blocked.unlink()
        log.grow(1)
        while not log.file.exists() or len(log.file.read_text().splitlines()) < 2:
            log.clock.advance(1)
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return checkpoint.unseal(await keeper.newest(), KEY).size

    assert asyncio.run(asyncio.wait_for(story(), 20)) == 7


def test_every_checkpoint_reaches_the_file_also_after_a_kill_in_between(log: Log) -> None:
    log.ask("sign")
    first = log.file.read_text()
    log.grow(1)
    log.ask("sign")
    whole = log.file.read_text()
    assert whole.startswith(first) and log.file.stat().st_mode & 0o077 == 0
    log.file.write_text(first + whole[len(first) :][:40])  # killed while it wrote
    log.ask("start")
    assert log.file.read_text() == whole
    log.file.unlink()
    log.ask("start")
    assert log.file.read_text() == whole


def test_after_a_restart_the_tree_goes_on_from_the_newest_checkpoint(log: Log) -> None:
    log.ask("sign")
    log.store.close()
    log.open()
    log.grow(9)
    signed = checkpoint.unseal(log.ask("sign"), KEY)
    assert checkpoint.verify(log.rows(), [signed]).seq == signed.size == 15
    log.sql(("UPDATE audit_checkpoints SET peaks = ? WHERE size = 15", (bytes(128),)))
    log.grow(1)
    with pytest.raises(AuditBroken, match="does not fit"):
        log.ask("sign")


@pytest.mark.req("A-112")
def test_an_edit_is_found_even_if_every_hash_was_computed_anew(log: Log) -> None:
    tokens = [log.ask("sign")]
    log.grow(4)
    tokens.append(log.ask("sign"))
    rows, signed = log.rows(), [checkpoint.unseal(token, KEY) for token in tokens]
    assert checkpoint.verify(rows, signed).seq == 10

    def edit(entry: dict[str, Any]) -> None:
        entry["object"] = "somebody else"

    for at in range(1, 11):
        forged = chained_anew(rows, edit, at)
        assert audit.verify(forged).seq == 10, "the chain alone does not show it"
        with pytest.raises(AuditBroken) as broken:
            checkpoint.verify(forged, signed)
        assert broken.value.fields["position"] == (1 if at <= 6 else 7)
        assert audit.verify(chained_anew(rows, lambda entry: None, at)) == audit.verify(rows), (
            "only the edit changes it"
        )
    for kept in range(10):
        with pytest.raises(AuditBroken) as broken:
            checkpoint.verify(rows[:kept], signed)
        assert broken.value.fields["position"] == kept + 1


def test_a_bit_flipped_in_an_entry_is_found_at_that_entry(log: Log) -> None:
    signed = [checkpoint.unseal(log.ask("sign"), KEY)]
    rows = log.rows()
    for at, row in enumerate(rows):
        body = row.body.replace("owner", "ownes", 1)
        edited = [*rows[:at], AuditRow(row.seq, row.time, row.event, body, row.prev, row.hash), *rows[at + 1 :]]
        with pytest.raises(AuditBroken) as broken:
            checkpoint.verify(edited, signed)
        assert broken.value.fields["position"] == at + 1
    swapped = [rows[1], rows[0], *rows[2:]]
    with pytest.raises(AuditBroken) as broken:
        checkpoint.verify(swapped, signed)
    assert broken.value.fields["position"] == 1


def test_an_older_store_is_noticed_and_only_a_person_can_go_on_with_it(log: Log, tmp_path: Path) -> None:
    log.ask("sign")
    log.grow(3)
    log.ask("sign")
    log.ask("start")
    log.sql(("DELETE FROM audit WHERE seq > 7", ()), ("DELETE FROM audit_checkpoints WHERE size > 6", ()))
    with pytest.raises(LogRolledBack, match="over 9 audit entries and the store has 7"):
        log.ask("start")
    told = log.ask("accept_rollback", ADMIN, "restored last night's backup")
    assert "over 9" in told["accepted"] and Path(told["kept"]).exists()
    last = log.rows()[-1].entry
    assert (last["event"], last["fields"]) == ("audit-rollback-accepted", {"comment": "restored last night's backup"})
    log.ask("start")
    with pytest.raises(NotFound, match="nothing to accept"):
        log.ask("accept_rollback", ADMIN, "again")


def test_a_store_with_another_history_of_the_same_length_is_noticed(log: Log) -> None:
    log.ask("sign")
    log.sql(("UPDATE audit SET hash = ? WHERE seq = 6", (bytes(32),)))
    with pytest.raises(LogRolledBack, match="entry 6 is not the one"):
        log.ask("start")


def test_an_entry_is_proved_to_somebody_who_has_nothing_but_the_key(log: Log) -> None:
    log.grow(5)
    for seq in range(1, 12):
        document = json.loads(json.dumps(log.ask("prove_entry", seq)))
        signed, body = checkpoint.check_inclusion(document, KEY)
        assert json.loads(body)["seq"] == seq and signed.size == 11
        for change in (
            {"seq": seq + 1},
            {"body": body.replace("owner", "ownes")},
            {"proof": document["proof"][1:]},
            {"proof": [*document["proof"], jws.base64url(bytes(32))]},
        ):
            with pytest.raises(AuditBroken):
                checkpoint.check_inclusion({**document, **change}, KEY)
    with pytest.raises(NotFound):
        log.ask("prove_entry", 12)


def test_growth_is_proved_from_any_checkpoint_that_was_kept(log: Log) -> None:
    kept = [log.ask("sign")]
    for count in (1, 4, 9):
        log.grow(count)
        kept.append(log.ask("sign"))
    for older in kept:
        document = json.loads(json.dumps(log.ask("prove_growth", older)))
        first, second = checkpoint.check_consistency(document, KEY)
        assert first.size <= second.size == 20
    document = log.ask("prove_growth", kept[1])
    with pytest.raises(AuditBroken):
        checkpoint.check_consistency({**document, "older": kept[0]}, KEY)
    turned = {**document, "older": document["checkpoint"], "checkpoint": document["older"]}
    with pytest.raises(AuditBroken):
        checkpoint.check_consistency(turned, KEY)


@pytest.mark.parametrize("document", [
    None, [], {}, {"checkpoint": 1, "proof": []}, {"checkpoint": "a.b.c", "proof": ["!"]},
    {"checkpoint": "a.b.c", "proof": ["AA"]}, {"checkpoint": "a.b.c", "proof": [""] * 65},
    {"checkpoint": "a.b.c", "proof": [], "seq": "1", "body": ""}, {"checkpoint": "a.b.c", "proof": [], "seq": 1},
    {"checkpoint": "a.b.c", "proof": [], "seq": 1, "body": "\ud800"}, {"checkpoint": "", "proof": [], "older": 1},
])  # fmt: skip
def test_whatever_is_no_proof_is_malformed(document: Any) -> None:
    for read in (checkpoint.check_inclusion, checkpoint.check_consistency):
        with pytest.raises(BindingError):
            read(document, KEY)


@pytest.mark.parametrize("change", [
    {"size": 0}, {"size": True}, {"size": "6"}, {"iat": -1}, {"iat": 1 << 40}, {"iss": 7}, {"iss": "spiffe://other"},
    {"root": "AA"}, {"root": None}, {"head": "!"}, {"head": 3},
])  # fmt: skip
def test_a_signed_token_that_says_nonsense_is_malformed(log: Log, change: dict[str, Any]) -> None:
    claims = dict(jws.unseal(log.ask("sign"), typ=checkpoint.TYPE, key=KEY).claims)
    token = jws.seal({**claims, **change}, typ=checkpoint.TYPE, signer=KeySigner(key("audit")))
    with pytest.raises(BindingError):
        checkpoint.unseal(token, KEY, origin=ORIGIN)


def test_another_key_or_another_kind_of_token_is_no_checkpoint(log: Log) -> None:
    token = log.ask("sign")
    with pytest.raises(Refusal) as refused:
        checkpoint.unseal(token, key("other").public_key())
    assert refused.value.reason == "signature-invalid"
    claims = dict(jws.unseal(token, typ=checkpoint.TYPE, key=KEY).claims)
    with pytest.raises(Refusal):
        checkpoint.unseal(jws.seal(claims, typ="wit+jwt", signer=KeySigner(key("audit"))), KEY)


def test_an_exported_log_is_verified_without_the_appliance(log: Log, tmp_path: Path) -> None:
    log.ask("sign")
    lines = list(audit.export(log.rows()))
    signed = [checkpoint.unseal(token, KEY) for token in read_tokens(log.file.read_text(), log.file)]
    assert checkpoint.verify(audit.read_export(lines), signed).seq == 6
    with pytest.raises(AuditBroken, match="the log ends at 5"):
        checkpoint.verify(audit.read_export(lines[:-1]), signed)
    numbers = '{"body": 1, "prev": "", "hash": ""}'
    for broken in ("", "{}", "[]", "null", '{"body": "{}", "prev": "", "hash": ""}', numbers):
        with pytest.raises(AuditBroken, match="line 3"):
            checkpoint.verify(audit.read_export([*lines[:2], broken, *lines[3:]]), signed)
    for broken in ("x", "{}", '{"checkpoint": 1}', "[]"):
        with pytest.raises(AuditBroken, match="is no checkpoint"):
            read_tokens(log.file.read_text() + broken + "\n", log.file)


def test_the_newest_checkpoint_is_not_there_before_the_first(tmp_path: Path) -> None:
    empty = Log(tmp_path)
    with pytest.raises(NotFound):
        empty.ask("newest")
    with pytest.raises(NotFound):
        empty.ask("sign")
    assert empty.ask("verify")["ok"]
    empty.store.close()


def test_a_clock_that_goes_back_breaks_no_checkpoint(log: Log) -> None:
    log.ask("sign")
    log.clock.advance(-timedelta(days=1).total_seconds())
    log.grow(1)
    assert checkpoint.unseal(log.ask("sign"), KEY).size == 7
    assert log.ask("verify")["ok"]
