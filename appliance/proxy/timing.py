"""Every pause and deadline of the proxy in one place, so that tests can shorten them; none is a setting of a site."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. The defaults follow RFC 8995, sections 4.1 and 5.6, and RFC 7030, section 4.2.3.

    `connect`: TCP and TLS. `voucher`: requestvoucher, which waits for the MASA. `call`: any other exchange. `spacing`:
    between starts of attempts. `round`: shortest pause before an announced offer is tried again. `first_pause`: first
    pause of a configured one. `longest_pending_wait`, `longest_enrol_wait`: caps on Retry-After. `retry`: first pause
    after a failed report or renewal, doubling to `longest_retry`. `idle`: age at which a kept connection is not used
    again. `at_once`: attempts under way together. `stall`: an attempt without progress for so long may be given up for
    another. `resume`, `resume_enrol`: how long a lost connection is repaired before and after the voucher was accepted.
    """

    connect: float = 5.0
    voucher: float = 40.0
    call: float = 15.0
    spacing: float = 4.0
    round: float = 30.0
    first_pause: float = 1.0
    longest_pending_wait: float = 60.0
    longest_enrol_wait: float = 3600.0
    retry: float = 30.0
    longest_retry: float = 3600.0
    idle: float = 8.0
    at_once: int = 8
    stall: float = 5.0
    resume: float = 120.0
    resume_enrol: float = 900.0
