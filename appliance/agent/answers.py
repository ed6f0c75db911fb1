"""Answers of the Agent API, read without believing that they are what was agreed."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from appliance.agent.errors import AgentApiAnswerUnusable, IssuanceRefused
from est.errors import EstError
from est.transfer import read_json

MAX_ANSWER = 262_144
LONGEST_PAUSE_SECONDS = 60.0


class Answer:
    """Members of a JSON answer; raises AgentApiAnswerUnusable for what is missing or of another type."""

    def __init__(self, members: Mapping[str, object]) -> None:
        self._members = members

    def value(self, name: str) -> object:
        if self._members.get(name) is None:
            raise AgentApiAnswerUnusable(f"the answer lacks {name}", name=name)
        return self._members[name]

    def text(self, name: str) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not value.isascii():
            raise AgentApiAnswerUnusable(f"{name} is not ASCII text", name=name)
        return value

    def whole(self, name: str) -> int:
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise AgentApiAnswerUnusable(f"{name} is not a whole number above 0", name=name)
        return value

    def optional_text(self, name: str) -> str | None:
        value = self._members.get(name)
        return None if value is None else str(value)

    def optional_whole(self, name: str) -> int | None:
        return None if self._members.get(name) is None else self.whole(name)


def read_answer(answer: bytes) -> dict[str, object]:
    """The JSON object in an answer; raises AgentApiAnswerUnusable."""
    try:
        value = read_json(answer, max_bytes=MAX_ANSWER)
    except EstError as error:
        raise AgentApiAnswerUnusable(f"the answer is not JSON: {error.detail}") from error
    if not isinstance(value, dict):
        raise AgentApiAnswerUnusable("the answer is not a JSON object")
    return value


def refusal_of(status: int, answer: bytes, headers: Mapping[str, str] | None = None) -> IssuanceRefused:
    """The problem document (RFC 9457) in an answer, as the refusal that it is; its text only as printable ASCII."""
    members: Mapping[str, Any] = {}
    with contextlib.suppress(AgentApiAnswerUnusable):
        members = read_answer(answer)
    problem = _printable(members.get("reason") or str(members.get("type", "")).rpartition("/")[2], 64)
    detail = _printable(members.get("detail", ""), 300)
    refusal = IssuanceRefused(f"{problem or 'refused'} ({status}): {detail}", status=status, problem=problem)
    if headers is not None and "Retry-After" in headers:
        refusal.fields["retry_after_seconds"] = retry_after_seconds(headers)
    return refusal


def _printable(value: object, longest: int) -> str:
    return "".join(one for one in str(value)[:longest] if " " <= one <= "~")


def retry_after_seconds(headers: Mapping[str, str]) -> float:
    """How long an answer asks to wait, at least a second and at most a minute; 5 s where it does not say."""
    text = headers.get("Retry-After", "")
    return min(max(float(text), 1.0), LONGEST_PAUSE_SECONDS) if text.isascii() and text.isdigit() else 5.0
