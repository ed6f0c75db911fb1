"""The knobs that make the lab's MASA misbehave, one row each; every knob has a test that turns it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Misbehaviour:
    """One knob: `default` is the value of NAME without =VALUE ("" = it takes none), `requirement` what it shows."""

    name: str
    effect: str
    default: str
    requirement: str


MISBEHAVIOURS: tuple[Misbehaviour, ...] = (
    Misbehaviour("foreign-signer", "vouchers are signed by a root that no device has built in", "", "B-321"),
    Misbehaviour("tampered", "one bit of the signed content is flipped after signing", "", "B-321, B-405"),
    Misbehaviour("no-signed-attributes", "the signature is over the bare content", "", "B-405, T-18"),
    Misbehaviour("two-signers", "a second signature stands beside the good one", "", "B-404, T-19"),
    Misbehaviour("wrong-content-type", "the signed content-type is not that of the content", "", "B-405, T-20"),
    Misbehaviour("jws-none", "a voucher in JWS has alg none and no signature", "", "B-444, T-22"),
    Misbehaviour("jws-hs256", "a voucher in JWS has a MAC keyed with the public key", "", "B-444, T-22"),
    Misbehaviour("jws-unprotected-alg", "a voucher in JWS names its algorithm unsigned", "", "B-444, T-22"),
    Misbehaviour("request-key", "what is signed calls itself a voucher-request", "", "B-421, T-21"),
    Misbehaviour("wrong-serial", "the voucher names another device", "", "B-313, B-322, T-02"),
    Misbehaviour("wrong-issuer", "the voucher names this serial number of another maker", "", "B-324, T-03"),
    Misbehaviour("wrong-nonce", "the voucher carries another nonce", "", "B-313, B-323, T-01"),
    Misbehaviour("no-nonce", "the voucher carries no nonce although one was asked for", "", "B-323"),
    Misbehaviour("expired", "the voucher expired an hour ago", "", "B-313, B-325"),
    Misbehaviour("wrong-pin", "the voucher pins a certificate of another domain", "", "B-313, B-327, T-06"),
    Misbehaviour("no-pin", "the voucher pins nothing", "", "B-304"),
    Misbehaviour("slow", "every answer comes so many seconds late", "15", "T-30, B-228"),
    Misbehaviour("http-500", "every answer is a server error", "", "T-30, B-228"),
    Misbehaviour("http-503", "every answer sends the caller away for a minute", "", "T-30, B-228"),
    Misbehaviour("http-401", "every answer asks for authentication", "", "B-146"),
    Misbehaviour("html", "every answer is an HTML page with status 200", "", "T-30, B-228"),
    Misbehaviour("redirect-loop", "every answer is a redirect to where it was asked", "", "B-158, B-233"),
    Misbehaviour("huge-body", "every answer is so many MiB long", "10", "T-23, B-411"),
    Misbehaviour("foreign-history", "the audit log shows a voucher of another domain", "", "B-339, T-05"),
    Misbehaviour("nonceless-history", "the audit log shows another domain's voucher without nonce", "", "B-339, T-12"),
    Misbehaviour("truncated-log", "the audit log says that so many entries were removed", "3", "B-335, B-339"),
    Misbehaviour("string-numbers", "numbers in the audit log are strings, as RFC 8995 prints them", "", "B-332, T-28"),
    Misbehaviour("newer-log", "the audit log is of version 2, with members of that version", "", "B-341, T-28"),
    Misbehaviour("log-elsewhere", "the audit log is offered at this host and port", "elsewhere.example:443", "T-29"),
)


def read_knobs(words: Iterable[str]) -> Mapping[str, str]:
    """Knob names (with =VALUE where one is taken) as a mapping name -> value.

    Raises ValueError that names the nearest known knob.
    """
    known = {knob.name: knob for knob in MISBEHAVIOURS}
    knobs: dict[str, str] = {}
    for word in words:
        name, _, value = word.strip().partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise ValueError(f"no such knob: {name}" + (f"; did you mean {near[0]}?" if near else ""))
        if value and not known[name].default:
            raise ValueError(f"{name} takes no value")
        knobs[name] = value or known[name].default
        if known[name].default.isdecimal() and not 0 <= float(knobs[name]) <= 3600:
            raise ValueError(f"{name} takes a number from 0 to 3600")
    return knobs


def main() -> None:
    """`python -m lab break`: list the knobs."""
    wide = max(len(knob.name) for knob in MISBEHAVIOURS)
    for knob in MISBEHAVIOURS:
        name = f"{knob.name}={knob.default}" if knob.default else knob.name
        print(f"{name:<{wide}}  {knob.effect} ({knob.requirement})")
