"""What a switch port does, as a table: state, event, state afterwards, orders."""

from __future__ import annotations

from itertools import product

import pytest

from lab.wired.rules import (
    EVERYBODY,
    AskBypass,
    By,
    BypassAnswered,
    Close,
    Deauthenticate,
    DisconnectAsked,
    Event,
    Heard,
    LinkDown,
    Login,
    Open,
    Order,
    Port,
    Reauthenticate,
    ReauthenticationAsked,
    Refused,
    Spoke,
    Switch,
    after,
)

A, B = "02:66:00:00:00:0a", "02:66:00:00:00:0b"
PLAIN = Switch(frozenset({10, 20, 30, 99}))
WITH_BYPASS = Switch(PLAIN.vlans, mac_bypass=True)

CLOSED = Port()
SPOKEN = Port(has_spoken=True)
ASKING = Port(asked=A)
LOGGED_IN = Port(20, A, By.LOGIN, has_spoken=True)
BYPASSED = Port(10, A, By.ADDRESS)

TABLE: list[tuple[str, Switch, Port, Event, Port, tuple[Order, ...]]] = [
    # a login opens the port, once
    ("a login opens", PLAIN, CLOSED, Login(A, True, 20), LOGGED_IN, (Open(20, A),)),
    ("the second event of the same login", PLAIN, LOGGED_IN, Login(A, True, 20), LOGGED_IN, ()),
    ("same address, other identity", PLAIN, LOGGED_IN, Login(A, True, 99),
     Port(99, A, By.LOGIN, has_spoken=True), (Open(99, A),)),
    ("a login after MAC bypass", WITH_BYPASS, BYPASSED, Login(A, True, 20), LOGGED_IN, (Open(20, A),)),
    ("another station logs in over a bypassed one", WITH_BYPASS, BYPASSED, Login(B, True, 20),
     Port(20, B, By.LOGIN, has_spoken=True), (Open(20, B),)),
    # and fails closed
    ("a VLAN that the switch has not", PLAIN, CLOSED, Login(A, True, 4000), CLOSED, (Close(), Deauthenticate(A))),
    ("that VLAN at an open port", PLAIN, LOGGED_IN, Login(A, True, 4000), SPOKEN, (Close(), Deauthenticate(A))),
    ("no VLAN at all", PLAIN, CLOSED, Login(A, True, 0), CLOSED, ()),
    ("no VLAN at an open port", PLAIN, LOGGED_IN, Login(A, True, 0), SPOKEN, (Close(),)),
    ("not authorized when asked", PLAIN, CLOSED, Login(A, False, 20), CLOSED, ()),
    ("not authorized any more", PLAIN, LOGGED_IN, Login(A, False, 20), SPOKEN, (Close(),)),
    ("a second station is turned away", PLAIN, LOGGED_IN, Login(B, True, 30), LOGGED_IN, (Deauthenticate(B),)),
    ("a second station that fails", PLAIN, LOGGED_IN, Login(B, False, 0), LOGGED_IN, ()),
    # the end of a session
    ("a failed login closes", PLAIN, LOGGED_IN, Refused(A), SPOKEN, (Close(),)),
    ("a failed login of another station", PLAIN, LOGGED_IN, Refused(B), LOGGED_IN, ()),
    ("a failed login at a closed port", PLAIN, CLOSED, Refused(A), CLOSED, ()),
    ("a failed login after MAC bypass", WITH_BYPASS, Port(10, A, By.ADDRESS, has_spoken=True), Refused(A), SPOKEN,
     (Close(),)),
    ("link loss", PLAIN, LOGGED_IN, LinkDown(), CLOSED, (Close(), Deauthenticate(EVERYBODY))),
    ("link loss of a bypassed station", WITH_BYPASS, BYPASSED, LinkDown(), CLOSED,
     (Close(), Deauthenticate(EVERYBODY))),
    ("link loss of an empty port", PLAIN, CLOSED, LinkDown(), CLOSED, (Close(), Deauthenticate(EVERYBODY))),
    # MAC bypass
    ("a silent station is asked about", WITH_BYPASS, CLOSED, Heard(A), ASKING, (AskBypass(A),)),
    ("only where it is on", PLAIN, CLOSED, Heard(A), CLOSED, ()),
    ("once at a time", WITH_BYPASS, ASKING, Heard(B), ASKING, ()),
    ("not at an open port", WITH_BYPASS, LOGGED_IN, Heard(B), LOGGED_IN, ()),
    ("not for one who spoke EAPOL", WITH_BYPASS, SPOKEN, Heard(A), SPOKEN, ()),
    ("the answer opens", WITH_BYPASS, ASKING, BypassAnswered(A, 10), BYPASSED, (Open(10, A),)),
    ("no", WITH_BYPASS, ASKING, BypassAnswered(A, 0), CLOSED, ()),
    ("a VLAN that is not here", WITH_BYPASS, ASKING, BypassAnswered(A, 4000), CLOSED, ()),
    ("an answer about another station", WITH_BYPASS, ASKING, BypassAnswered(B, 10), ASKING, ()),
    ("an answer after the link went down", WITH_BYPASS, CLOSED, BypassAnswered(A, 10), CLOSED, ()),
    ("an answer after a login", WITH_BYPASS, LOGGED_IN, BypassAnswered(A, 10), LOGGED_IN, ()),
    ("EAPOL makes the question void", WITH_BYPASS, ASKING, Spoke(A), SPOKEN, ()),
    ("EAPOL at a bypassed port leaves it open", WITH_BYPASS, BYPASSED, Spoke(A),
     Port(10, A, By.ADDRESS, has_spoken=True), ()),
    # the RADIUS server's wishes
    ("log in again", PLAIN, LOGGED_IN, ReauthenticationAsked(A), LOGGED_IN, (Reauthenticate(A),)),
    ("log in again, after MAC bypass", WITH_BYPASS, BYPASSED, ReauthenticationAsked(A),
     Port(10, A, By.ADDRESS, asked=A), (AskBypass(A),)),
    ("the same VLAN again", WITH_BYPASS, Port(10, A, By.ADDRESS, asked=A), BypassAnswered(A, 10), BYPASSED, ()),
    ("no longer by address", WITH_BYPASS, Port(10, A, By.ADDRESS, asked=A), BypassAnswered(A, 0), CLOSED, (Close(),)),
    ("log in again, somebody else", PLAIN, LOGGED_IN, ReauthenticationAsked(B), LOGGED_IN, ()),
    ("disconnect", PLAIN, LOGGED_IN, DisconnectAsked(A), SPOKEN, (Close(), Deauthenticate(A))),
    ("disconnect after MAC bypass", WITH_BYPASS, BYPASSED, DisconnectAsked(A), CLOSED, (Close(),)),
    ("disconnect somebody else", PLAIN, LOGGED_IN, DisconnectAsked(B), LOGGED_IN, ()),
    ("disconnect at a closed port", PLAIN, CLOSED, DisconnectAsked(A), CLOSED, ()),
]  # fmt: skip


@pytest.mark.parametrize(("switch", "port", "event", "then", "orders"), [row[1:] for row in TABLE],
                         ids=[row[0] for row in TABLE])  # fmt: skip
def test_a_port_does_what_the_table_says(
    switch: Switch, port: Port, event: Event, then: Port, orders: tuple[Order, ...]
) -> None:
    assert after(port, event, switch) == (then, orders)


EVENTS: list[Event] = [
    LinkDown(), Spoke(A),
    *(Login(who, ok, vlan) for who, ok, vlan in product((A, B), (True, False), (0, 10, 20, 4000))),
    *(kind(who) for kind, who in product((Refused, Heard, ReauthenticationAsked, DisconnectAsked), (A, B))),
    *(BypassAnswered(who, vlan) for who, vlan in product((A, B), (0, 10, 4000))),
]  # fmt: skip


@pytest.mark.parametrize("switch", [PLAIN, WITH_BYPASS], ids=["802.1X only", "with MAC bypass"])
def test_in_every_state_that_can_be_reached_the_bridge_is_as_the_port_says(switch: Switch) -> None:
    """All sequences of events: what the orders made of the bridge is what the state claims."""
    start = (Port(), (0, ""))
    seen, todo = {start}, [start]
    while todo:
        port, bridge = todo.pop()
        for event in EVENTS:
            then, orders = after(port, event, switch)
            made = bridge
            for order in orders:
                if isinstance(order, Open):
                    made = (order.vlan, order.station)
                elif isinstance(order, Close):
                    made = (0, "")
            assert made == (then.vlan, then.station), (port, event)
            assert then.vlan in (0, *switch.vlans) and (then.by is By.NOBODY) == (then.vlan == 0)
            if (then, made) not in seen:
                seen.add((then, made))
                todo.append((then, made))
    assert len(seen) > 5


def test_hearing_an_event_twice_moves_nothing_the_second_time() -> None:
    for event in EVENTS:
        once, _ = after(LOGGED_IN, event, WITH_BYPASS)
        twice, orders = after(once, event, WITH_BYPASS)
        assert (twice.vlan, twice.station) == (once.vlan, once.station)
        assert not [one for one in orders if isinstance(one, Open)]
