"""radius: who gets which VLAN. A pure decision with its reasons, and two ways to carry it to switches.

Read in this order: request, policy, decide, attributes, hook, simulate; then eap_tls and server (embedded RADIUS) or
render (FreeRADIUS). The smallest example:

>>> from datetime import UTC, datetime, timedelta
>>> from radius import AccessRequest, Credential, CredentialRef, Facts, OwnerFact, decide, explain, read_policy
>>> policy = read_policy('version = 1\\n[vlans]\\nrnd = 20\\nguest = 99\\n'
...                      '[[rule]]\\nname = "research"\\ndepartment = "R&D"\\nvlan = "rnd"')
>>> now = datetime(2026, 1, 1, tzinfo=UTC)
>>> held = Credential("dual", "spiffe://campus.example/agent/1", "spiffe://campus.example/owner/2", 7, "agents",
...                   "issued", now, now + timedelta(hours=8))
>>> facts = Facts(now, OwnerFact("spiffe://campus.example/owner/2", "active", ("R&D",)))
>>> print(explain(decide(AccessRequest(credential=CredentialRef("77c1", 7)), held, facts, policy)).splitlines()[0])
accept  VLAN 20 (rnd)  by rule research
"""

from radius.attributes import Attribute, to_attributes
from radius.decide import Credential, Decision, Facts, OwnerFact, Step, decide
from radius.errors import RadiusError
from radius.policy import Policy, Rule, read_policy
from radius.reasons import REASONS, Reason
from radius.request import AccessRequest, CredentialRef
from radius.simulate import explain

__all__ = [
    "REASONS",
    "AccessRequest",
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
    "read_policy",
    "to_attributes",
]
