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
    Misbehaviour("wrong-serial", "the voucher names another device", "", "B-313, B-322, T-02"),
    Misbehaviour("wrong-nonce", "the voucher carries another nonce", "", "B-313, B-323, T-01"),
    Misbehaviour("expired", "the voucher expired an hour ago", "", "B-313, B-325"),
    Misbehaviour("wrong-pin", "the voucher pins a certificate of another domain", "", "B-313, B-327, T-06"),
    Misbehaviour("slow", "every answer comes so many seconds late", "15", "T-30, B-228"),
    Misbehaviour("http-500", "every answer is a server error", "", "T-30, B-228"),
    Misbehaviour("http-401", "every answer asks for authentication", "", "B-146"),
    Misbehaviour("html", "every answer is an HTML page with status 200", "", "T-30, B-228"),
    Misbehaviour("foreign-history", "the audit log shows a voucher of another domain", "", "B-339, T-05"),
    Misbehaviour("nonceless-history", "the audit log shows another domain's voucher without nonce", "", "B-339, T-12"),
    Misbehaviour("string-numbers", "numbers in the audit log are strings, as RFC 8995 prints them", "", "B-332, T-28"),
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
    if "slow" in knobs:
        float(knobs["slow"])
    return knobs


def main() -> None:
    """`python -m lab break`: list the knobs."""
    wide = max(len(knob.name) for knob in MISBEHAVIOURS)
    for knob in MISBEHAVIOURS:
        name = f"{knob.name}={knob.default}" if knob.default else knob.name
        print(f"{name:<{wide}}  {knob.effect} ({knob.requirement})")
