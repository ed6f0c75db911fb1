"""One pledge as text for people: where it stands, each bootstrap step by step, its artefacts, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from appliance.console.tables import printable, render

_HEAD = (
    "serial", "manufacturer", "state", "proxy", "masa", "assertion", "audit_verdict", "issuer", "fingerprint",
    "created_at", "updated_at",
)  # fmt: skip
_TITLES = {
    "pledge_voucher_request": "the pledge's voucher-request",
    "registrar_voucher_request": "the registrar's voucher-request",
    "voucher": "the MASA's voucher",
}


def timeline_text(pledge: Mapping[str, Any]) -> str:
    """The text of `appliance pledges show`."""
    parts = [render({key: pledge.get(key, "") for key in _HEAD})]
    parts += [_bootstrap(number, rows) for number, rows in _by_bootstrap(pledge["timeline"]).items()]
    for name, title in _TITLES.items():
        if name in pledge["artefacts"]:
            parts.append(f"{title}\n{_indented(render(pledge['artefacts'][name]))}")
    if pledge["history"]:
        parts.append(f"the device's history, judged\n{_indented(render(pledge['history']))}")
    if pledge["history_override"]:
        parts.append(f"override\n{_indented(render(pledge['history_override']))}")
    if pledge["what_to_do"]:
        parts.append(f"what to do: {printable(pledge['what_to_do'])}")
    return "\n".join(part.rstrip("\n") + "\n" for part in parts).rstrip("\n")


def _by_bootstrap(steps: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    found: dict[int, list[Mapping[str, Any]]] = {}
    for step in steps:
        found.setdefault(step["bootstrap"], []).append(step)
    return found


def _bootstrap(number: int, steps: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        {
            "at": step["at"][:23].replace("T", " "),
            "step": step["step"],
            "took ms": step.get("ms", ""),
            "after ms": step.get("after_ms", ""),
            "times": step["times"] if step["times"] > 1 else "",
            "code": _code(step),
        }
        for step in steps
    ]
    hints = [f"  {step['step']} ({step['code']}): {printable(step['hint'])}" for step in steps if step["hint"]]
    return f"bootstrap {number}\n{_indented(render(rows))}" + "".join(f"{line}\n" for line in hints)


def _code(step: Mapping[str, Any]) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in step.get("facts", {}).items())
    return " ".join(part for part in (step["code"], f"({facts})" if facts else "") if part)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.splitlines())
