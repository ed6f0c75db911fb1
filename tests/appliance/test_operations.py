"""Operations: found by name, arguments held against their types, nothing private reachable."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from appliance.console.operations import Operations, OperationUnknown
from appliance.errors import RequestMalformed


class Things:
    """A group like those of the console."""

    def __init__(self) -> None:
        self.said: list[Any] = []

    async def add(
        self, name: str, count: int = 1, weight: float = 1.0, tags: list[str] = [], loud: bool = False
    ) -> Any:  # noqa: B006
        self.said.append((name, count, weight, tags, loud))
        return {"name": name}

    async def list_(self) -> Any:
        return list(self.said)

    async def _secret(self) -> Any:
        raise AssertionError("nobody reaches this")

    def plain(self) -> Any:
        raise AssertionError("not an operation")


class Top:
    async def doctor(self) -> Any:
        return "well"


def ask(name: str, /, **arguments: Any) -> Any:
    return asyncio.run(Operations({"things": Things(), "": Top()}).call(name, arguments))


def test_names_are_nouns_and_verbs() -> None:
    assert Operations({"things": Things(), "": Top()}).names == ["doctor", "things.add", "things.list"]
    assert ask("doctor") == "well"
    assert ask("things.add", name="x", count=2, weight=3, tags=["a"], loud=True) == {"name": "x"}


@pytest.mark.parametrize("name", [
    "", "things", "things.", ".doctor", "things._secret", "things.plain", "things.list_", "things.said",
    "things.__init__", "Things.add", "things.add.__func__", "doctor ", "things.add\n",
])  # fmt: skip
def test_everything_else_is_unknown(name: str) -> None:
    with pytest.raises(OperationUnknown):
        ask(name)


@pytest.mark.parametrize("arguments", [
    {}, {"name": 1}, {"name": None}, {"name": "x", "count": "1"}, {"name": "x", "count": 1.0},
    {"name": "x", "count": True}, {"name": "x", "loud": 1}, {"name": "x", "loud": "true"},
    {"name": "x", "weight": True}, {"name": "x", "weight": "1"}, {"name": "x", "tags": "a"}, {"name": "x", "tags": {}},
    {"name": "x", "tags": [1]}, {"name": "x", "more": 1}, {"name": "x", "self": 1}, {"name": ["x"]},
])  # fmt: skip
def test_arguments_of_other_types_are_refused_before_anything_happens(arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestMalformed):
        ask("things.add", **arguments)
