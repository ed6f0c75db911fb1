"""What radius refuses, as classes.

RadiusError                     (abstract; never raised bare)
├── PolicyError                 (abstract: a policy text that must not be published)
│   ├── PolicyMalformed         not TOML, too large, or not the expected shape
│   ├── PolicyVersionUnknown    `version` is absent or not one we read
│   ├── PolicyKeyUnknown        a key that means nothing here
│   ├── PolicyValueInvalid      a value of the wrong type or outside its list
│   ├── VlanOutOfRange          a VLAN id outside 1..4094
│   ├── VlanUnknown             a rule or default names a VLAN that [vlans] does not have
│   ├── RuleDuplicate           two rules with one name, or one condition twice in a rule
│   └── RuleUnreachable         earlier rules take everything this rule could match
├── HookMalformed               the RADIUS server's JSON is not the form that rlm_rest writes
├── EapMalformed                an EAP or EAP-TLS packet breaks the framing rules
├── EapOutOfTurn                a well-formed EAP packet that is not an answer to our last request
├── EapTooLarge                 a TLS message or a conversation past its cap
├── PacketInvalid               a RADIUS packet to drop without an answer: malformed or not authenticated
├── WorkerMessageMalformed      a RADIUS worker and the process that it asks do not understand each other
├── NasProfileUnknown           a kind of NAS that radius.nas_profiles does not have
└── RaddbValueInvalid           a name, secret, address or number that must not go into a FreeRADIUS file
"""

from __future__ import annotations

from typing import ClassVar

from est.errors import Refusal


class RadiusError(Refusal):
    """Base of radius's refusals; abstract."""


class PolicyError(RadiusError):
    """A policy that cannot be used; abstract. Field `where` names the place, as `rule[2].vlan`."""


class PolicyMalformed(PolicyError):
    """The text is not TOML, is too large, or a table stands where a value belongs."""

    reason: ClassVar[str] = "policy-malformed"


class PolicyVersionUnknown(PolicyError):
    """`version` is absent or not a version that this release reads."""

    reason: ClassVar[str] = "policy-version-unknown"


class PolicyKeyUnknown(PolicyError):
    """A key that means nothing at this place; field `near` has the closest known one."""

    reason: ClassVar[str] = "policy-key-unknown"


class PolicyValueInvalid(PolicyError):
    """A value is missing, has the wrong type, or is not one of those allowed."""

    reason: ClassVar[str] = "policy-value-invalid"


class VlanOutOfRange(PolicyError):
    """A VLAN id outside 1..4094 (IEEE 802.1Q, clause 9.6: 0 and 4095 are reserved)."""

    reason: ClassVar[str] = "vlan-out-of-range"


class VlanUnknown(PolicyError):
    """A rule or a default names a VLAN that the [vlans] table does not have."""

    reason: ClassVar[str] = "vlan-unknown"


class RuleDuplicate(PolicyError):
    """Two rules share a name, or a rule lists the same condition twice."""

    reason: ClassVar[str] = "rule-duplicate"


class RuleUnreachable(PolicyError):
    """Earlier rules match everything that this rule could match, so it would never be used."""

    reason: ClassVar[str] = "rule-unreachable"


class HookMalformed(RadiusError):
    """The body is not the attribute object that FreeRADIUS's rlm_rest writes."""

    reason: ClassVar[str] = "hook-malformed"


class EapMalformed(RadiusError):
    """An EAP or EAP-TLS packet breaks the framing rules of RFC 3748 or RFC 5216."""

    reason: ClassVar[str] = "eap-malformed"


class EapOutOfTurn(RadiusError):
    """A well-formed EAP packet that does not answer the last request of the conversation."""

    reason: ClassVar[str] = "eap-out-of-turn"


class EapTooLarge(RadiusError):
    """A TLS message above 64 KiB, or a conversation with too many bytes or rounds."""

    reason: ClassVar[str] = "eap-too-large"


class PacketInvalid(RadiusError):
    """A RADIUS packet that gets no answer: malformed, or without a Message-Authenticator that verifies.

    Field `code`, where there is one, is the reason code for the decision log.
    """

    reason: ClassVar[str] = "radius-packet-invalid"


class WorkerMessageMalformed(RadiusError):
    """A worker, or the process that it asks, sent something that is no message of theirs."""

    reason: ClassVar[str] = "worker-message-malformed"


class NasProfileUnknown(RadiusError):
    """There is no NAS profile of this name; the manual's reference of NAS profiles lists them."""

    reason: ClassVar[str] = "nas-profile-unknown"


class RaddbValueInvalid(RadiusError):
    """A value that must not be written into a FreeRADIUS configuration file; field `name` says which."""

    reason: ClassVar[str] = "raddb-value-invalid"
