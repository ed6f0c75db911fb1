from __future__ import annotations

import doctest

import radius
from radius import explain
from radius.decide import refuse
from tests.radius.test_decide import REQUEST, ask, with_owner


def test_the_example_of_the_package_runs() -> None:
    result = doctest.testmod(radius)
    assert (result.failed, result.attempted > 4) == (0, True)


def test_an_explanation_shows_verdict_stages_reason_and_next_step() -> None:
    lines = explain(ask()).splitlines()
    assert lines[0] == "accept  VLAN 20 (research)  by rule research  policy revision 3"
    assert [line.split()[0] for line in lines[1:5]] == ["tls", "credential", "owner", "policy"]
    assert [line.split()[1] for line in lines[1:5]] == ["ok"] * 4
    assert lines[-1].startswith("next  appliance ")


def test_a_refusal_shows_where_it_stopped_and_why() -> None:
    text = explain(ask(facts=with_owner(state="suspended")))
    assert text.startswith("reject")
    assert "owner       NO" in text
    assert "policy      -" in text
    assert "why   owner-suspended" in text
    assert "cause An administrator suspended the owner." in text


def test_every_reason_can_be_explained() -> None:
    for code in radius.REASONS:
        assert code in explain(refuse(REQUEST, code))
