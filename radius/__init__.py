"""radius: who gets which VLAN. A pure decision with its reasons, and two ways to carry it to switches.

Read in this order: request, rules, policy, ruling, decide, attributes, hook, simulate; then reach and impact (what a
policy would do), failures (what ended before it), and last eap_tls and server (embedded RADIUS) or render (FreeRADIUS).
It needs no appliance. The smallest example:

>>> from datetime import UTC, datetime, timedelta
>>> from radius import AccessRequest, Credential, CredentialRef, Facts, OwnerFact, decide, explain, read_policy
>>> policy = read_policy('version = 2\\n[vlans]\\nrnd = 20\\nguest = 99\\n'
...                      '[[rule]]\\nname = "research"\\ndepartment = "R&D"\\nnas = "sw-*"\\nvlan = "rnd"')
>>> now, owner = datetime(2026, 1, 1, tzinfo=UTC), "spiffe://campus.example/owner/2"
>>> held = Credential("dual", "spiffe://campus.example/agent/1", owner, 7, "agents", "issued", now, now + timedelta(1))
>>> login = AccessRequest(nas="sw-1", credential=CredentialRef("77c1", 7))
>>> print(explain(decide(login, held, Facts(now, OwnerFact(owner, "active", ("R&D",))), policy)).splitlines()[0])
accept  VLAN 20 (rnd)  by rule research  asked again within 86400 s
"""

from radius.attributes import Attribute, to_attributes
from radius.decide import decide
from radius.decision import Credential, Decision, Facts, OwnerFact, Step
from radius.errors import RadiusError
from radius.policy import Policy, load_policy, read_policy
from radius.reasons import REASONS, Reason
from radius.request import AccessRequest, CredentialRef
from radius.rules import Asked, Rule
from radius.simulate import explain

__all__ = [
    "REASONS",
    "AccessRequest",
    "Asked",
    "Attribute",
    "Credential",
    "CredentialRef",
    "Decision",
    "Facts",
    "OwnerFact",
    "Policy",
    "RadiusError",
    "Reason",
    "Rule",
    "Step",
    "decide",
    "explain",
    "load_policy",
    "read_policy",
    "to_attributes",
]
