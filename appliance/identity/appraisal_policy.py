"""What evidence must show, as data: the appraisal policy file and its built-in default (RFC 9334, section 8.5).

    version = 1
    id = "urn:campus.example:appraisal:2"

    [default]
    required = ["executable_digest"]     # claims that the agent's part must hold; missing: contraindicated
    methods = ["brski"]                  # how the vouching proxy may have come in; another: contraindicated
    debug = "warning"                    # tier of an agent that is being debugged
    root = "warning"                     # tier of an agent that runs as uid 0
    key_by_proxy = "affirming"           # tier of a key that the proxy made for its agent (key_origin)
    executables = ["<sha256, hex>"]      # known executables; empty: not looked at
    unknown_executable = "contraindicated"
    warning_seconds = 3600               # longest life of a credential whose evidence got a warning
    tpm = "contraindicated"              # tier of a machine without a good TPM quote; not there: not looked at
    pcrs = { 7 = ["<sha256, hex>"] }     # good values of a TPM's registers; not there: not looked at
    unknown_pcrs = "contraindicated"     # tier of a machine that shows others, or none

    [attestation_keys]                   # SHA-256 of the key (SPKI) by which a proxy's TPM makes quotes
    "spiffe://campus.example/proxy/..." = "<sha256, hex>"

    [class.robot]                        # an agent class says only what differs from [default]
    executables = ["..."]

Tiers are AR4SI's words; only `affirming` and `warning` lead to a credential, the latter to a short one.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

from appliance.binding.ear import Tier
from appliance.binding.errors import BindingError
from appliance.binding.evidence import AGENT_CLAIMS
from appliance.binding.identifier import Kind, read_kind
from appliance.binding.tpm_quote import MAX_PCRS
from appliance.errors import ApplianceError

MAX_POLICY_BYTES = 262_144


class AppraisalPolicyInvalid(ApplianceError):
    """The appraisal policy file cannot be used; the detail says where."""

    reason: ClassVar[str] = "appraisal-policy-invalid"


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """What agents of one class must show."""

    required: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset({"brski", "est"})
    debug: Tier = Tier.WARNING
    root: Tier = Tier.WARNING
    key_by_proxy: Tier = Tier.AFFIRMING
    executables: frozenset[str] = frozenset()
    unknown_executable: Tier = Tier.CONTRAINDICATED
    warning_seconds: int = 3600
    tpm: Tier | None = None
    pcrs: Mapping[int, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    unknown_pcrs: Tier = Tier.CONTRAINDICATED


@dataclass(frozen=True, slots=True)
class AppraisalPolicy:
    """A policy identifier, the rules for each agent class, and the TPMs' keys (SHA-256, hex) by proxy."""

    identifier: str
    default: ClassPolicy = ClassPolicy()
    classes: Mapping[str, ClassPolicy] = field(default_factory=lambda: MappingProxyType({}))
    attestation_keys: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def for_class(self, agent_class: str) -> ClassPolicy:
        """The rules for an agent class; an unnamed class has the default ones."""
        return self.classes.get(agent_class, self.default)


BUILT_IN = AppraisalPolicy("urn:appliance:appraisal:built-in:1")

_TIERS = {str(tier): tier for tier in Tier if tier is not Tier.NONE}
_KEYS = frozenset(
    {
        "required",
        "methods",
        "debug",
        "root",
        "key_by_proxy",
        "executables",
        "unknown_executable",
        "warning_seconds",
        "tpm",
        "pcrs",
        "unknown_pcrs",
    }
)
_PCRS = frozenset(str(number) for number in range(MAX_PCRS))
_MAX_WARNING_SECONDS = 86_400
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def read_appraisal_policy(text: str) -> AppraisalPolicy:
    """The policy in a TOML text; raises AppraisalPolicyInvalid naming the place."""
    if len(text) > MAX_POLICY_BYTES:
        raise AppraisalPolicyInvalid(f"the policy has more than {MAX_POLICY_BYTES} characters")
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError) as cause:
        raise AppraisalPolicyInvalid(str(cause) or "nested too deeply") from cause
    if unknown := sorted(set(document) - {"version", "id", "default", "class", "attestation_keys"}):
        raise AppraisalPolicyInvalid(f"unknown key {unknown[0]}", where=unknown[0])
    if document.get("version") != 1:
        raise AppraisalPolicyInvalid("version must be 1", where="version")
    identifier = document.get("id")
    if not isinstance(identifier, str) or not 1 <= len(identifier) <= 200 or not identifier.isprintable():
        raise AppraisalPolicyInvalid("id must be a text of 1 to 200 characters", where="id")
    default = _rules(document.get("default", {}), "default", ClassPolicy())
    tables = document.get("class", {})
    if not isinstance(tables, dict):
        raise AppraisalPolicyInvalid("class must be a table of tables", where="class")
    classes: dict[str, ClassPolicy] = {}
    for name, table in tables.items():
        if not _NAME.fullmatch(name):
            raise AppraisalPolicyInvalid(f"class {name[:80]!a} is not a class name", where="class")
        classes[name] = _rules(table, f"class.{name}", default)
    keys = _attestation_keys(document.get("attestation_keys", {}))
    return AppraisalPolicy(identifier, default, MappingProxyType(classes), keys)


def _rules(table: object, where: str, base: ClassPolicy) -> ClassPolicy:
    if not isinstance(table, dict):
        raise AppraisalPolicyInvalid(f"{where} must be a table", where=where)
    if unknown := sorted(set(table) - _KEYS):
        raise AppraisalPolicyInvalid(f"{where}: unknown key {unknown[0]}", where=f"{where}.{unknown[0]}")
    rules = base
    if "required" in table:
        required = _words(table["required"], f"{where}.required", _NAME)
        if unknown := sorted(required - set(AGENT_CLAIMS)):
            raise AppraisalPolicyInvalid(f"{where}.required: evidence has no claim {unknown[0]}", where=where)
        rules = replace(rules, required=required)
    if "methods" in table:
        methods = _words(table["methods"], f"{where}.methods", _NAME)
        if not methods <= {"brski", "est"}:
            raise AppraisalPolicyInvalid(f"{where}.methods: brski or est", where=f"{where}.methods")
        rules = replace(rules, methods=methods)
    if "executables" in table:
        rules = replace(rules, executables=_words(table["executables"], f"{where}.executables", _SHA256))
    if "debug" in table:
        rules = replace(rules, debug=_tier(table["debug"], f"{where}.debug"))
    if "root" in table:
        rules = replace(rules, root=_tier(table["root"], f"{where}.root"))
    if "key_by_proxy" in table:
        rules = replace(rules, key_by_proxy=_tier(table["key_by_proxy"], f"{where}.key_by_proxy"))
    if "unknown_executable" in table:
        rules = replace(rules, unknown_executable=_tier(table["unknown_executable"], f"{where}.unknown_executable"))
    if "tpm" in table:
        rules = replace(rules, tpm=_tier(table["tpm"], f"{where}.tpm"))
    if "pcrs" in table:
        rules = replace(rules, pcrs=_pcrs(table["pcrs"], f"{where}.pcrs"))
    if "unknown_pcrs" in table:
        rules = replace(rules, unknown_pcrs=_tier(table["unknown_pcrs"], f"{where}.unknown_pcrs"))
    if "warning_seconds" in table:
        seconds = table["warning_seconds"]
        if type(seconds) is not int or not 0 < seconds <= _MAX_WARNING_SECONDS:
            raise AppraisalPolicyInvalid(f"{where}.warning_seconds: 1 to {_MAX_WARNING_SECONDS}", where=where)
        rules = replace(rules, warning_seconds=seconds)
    return rules


def _attestation_keys(table: object) -> Mapping[str, str]:
    if not isinstance(table, dict):
        raise AppraisalPolicyInvalid("attestation_keys must be a table", where="attestation_keys")
    for proxy, digest in table.items():
        try:
            read_kind(proxy, Kind.PROXY)
        except BindingError as cause:
            raise AppraisalPolicyInvalid(
                f"attestation_keys: {proxy[:80]!a} is no proxy's identifier", where="attestation_keys"
            ) from cause
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise AppraisalPolicyInvalid(
                f"attestation_keys: {proxy} wants a SHA-256 as 64 hex digits", where="attestation_keys"
            )
    return MappingProxyType(dict(table))


def _pcrs(table: object, where: str) -> Mapping[int, frozenset[str]]:
    if not isinstance(table, dict) or not table.keys() <= _PCRS:
        raise AppraisalPolicyInvalid(f"{where}: a table of registers 0 to {MAX_PCRS - 1}", where=where)
    good = {int(name): _words(values, f"{where}.{name}", _SHA256) for name, values in table.items()}
    return MappingProxyType(good)


def _words(value: object, where: str, pattern: re.Pattern[str]) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and pattern.fullmatch(item) for item in value):
        raise AppraisalPolicyInvalid(f"{where}: a list of texts of the form {pattern.pattern}", where=where)
    return frozenset(value)


def _tier(value: object, where: str) -> Tier:
    tier = _TIERS.get(value) if isinstance(value, str) else None
    if tier is None:
        raise AppraisalPolicyInvalid(f"{where}: affirming, warning or contraindicated", where=where)
    return tier
