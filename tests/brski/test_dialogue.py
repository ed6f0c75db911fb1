"""Whole dialogues of pledge, registrar and MASA in memory."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest

import brski
import lab
from brski import Assertion, AuditPolicy, DomainNotPinned, ProximityMismatch, appraise, paths
from tests.brski.trio import Trio
from tests.support import NOW

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", [brski, lab])
def test_example_in_the_docstring_runs(package: object) -> None:
    result = doctest.testmod(package)  # type: ignore[arg-type]
    assert result.attempted > 3
    assert result.failed == 0


def test_the_examples_run_where_the_product_is_not_installed() -> None:
    """brski is a library of its own: neither it nor its example may pull the appliance in."""
    program = (
        "import sys, doctest\n"
        "sys.modules.update({'appliance': None, 'radius': None, 'aiohttp': None, 'sqlalchemy': None})\n"
        "import brski, est\n"
        "sys.exit(any(doctest.testmod(package).failed for package in (brski, est)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.req("B-221", "B-321", "B-327")
@pytest.mark.parametrize("media_type", paths.VOUCHER_FORMATS.values(), ids=list(paths.VOUCHER_FORMATS))
def test_pledge_imprints_on_the_campus(media_type: str) -> None:
    assert Trio(media_type=media_type).run().assertion is Assertion.PROXIMITY


@pytest.mark.req("B-244", "B-254", "T-04")
def test_request_relayed_by_a_man_in_the_middle_is_refused() -> None:
    honest, mallory = Trio(), Trio(domain="Mallory")
    with pytest.raises(ProximityMismatch):
        honest.consider(mallory.ask())


@pytest.mark.req("B-327", "T-06")
def test_voucher_for_the_campus_does_not_make_mallory_trusted() -> None:
    honest, mallory = Trio(), Trio(domain="Mallory")
    exchange = honest.consider()
    granted = exchange.conclude(honest.issue(exchange.call).reply, NOW)
    with pytest.raises(DomainNotPinned):
        mallory.accept(exchange.reply(granted), mallory.ask())


@pytest.mark.req("B-339", "T-05")
def test_man_in_the_middle_with_a_voucher_of_his_own_shows_in_the_history() -> None:
    honest, mallory = Trio(), Trio(domain="Mallory")
    mallory.events = honest.events
    mallory.run()  # the pledge imprints on Mallory, by design
    honest.run()
    exchange = honest.consider()
    log = exchange.read_audit_log(honest.masa.audit_log(exchange.audit_log_call, honest, now=NOW))
    appraisal = appraise(log, AuditPolicy(), own_domain_ids=honest.registrar.domain_ids)
    assert not appraisal.is_accepted


@pytest.mark.req("B-111", "T-31")
def test_parallel_attempts_are_told_apart_by_their_nonces() -> None:
    one, two = Trio(nonce=bytes(16)), Trio(nonce=bytes([1]) * 16, domain="Mallory")
    first, second = one.ask(), two.ask()
    exchange = two.consider(second)
    granted = exchange.conclude(two.issue(exchange.call).reply, NOW)
    with pytest.raises(brski.BrskiError):
        one.accept(exchange.reply(granted), first)
    assert two.accept(exchange.reply(granted), second)
