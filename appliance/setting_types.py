"""Texts that settings may hold, as pydantic types: what identifiers and certificates are made of, checked at once."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import shlex
from typing import Annotated

from pydantic import AfterValidator, StringConstraints

MAX_TRUST_DOMAIN = 68
"""So that an owner's identifier, spiffe://<trust domain>/owner/<uuid>, has at most 120 characters (W-12)."""
_HOST = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_CLASS = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_OID_ARC = re.compile(r"[0-2](\.(0|[1-9][0-9]{0,9})){2,20}")


def _check_host(name: str, longest: int) -> str:
    is_address = name.replace(".", "").isdigit()
    if len(name) > longest or is_address or not _HOST.fullmatch(name):
        raise ValueError(f"a host name in lower case is wanted, of at most {longest} characters")
    return name


def _check_address(text: str) -> str:
    if len(text) > 255 or not (text.isascii() and text.isprintable()) or " " in text:
        raise ValueError("at most 255 printable characters of ASCII without blanks are wanted")
    return text


def _check_class(name: str) -> str:
    if not _CLASS.fullmatch(name):
        raise ValueError("an agent class has 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


def _check_arc(arc: str) -> str:
    # some X.509 parsers refuse a whole certificate for an arc made of a UUID (W-10)
    if not _OID_ARC.fullmatch(arc) or arc.startswith("2.25."):
        raise ValueError("a dotted object identifier is wanted, and none below 2.25")
    return arc


def _check_command(text: str) -> str:
    try:
        shlex.split(text)
    except ValueError as cause:
        raise ValueError(f"a command line is wanted: {cause}") from cause
    return text


def _check_domain_id(text: str) -> str:
    try:
        octets = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        octets = b""
    if not octets:
        raise ValueError("a domainID is base64")
    return text


def _check_attribute(name: str) -> str:
    if name and not _ATTRIBUTE.fullmatch(name):
        raise ValueError("an attribute name of LDAP is letters, digits and hyphens")
    return name


def _check_filter(text: str) -> str:
    depth, ends = 0, []
    for at, char in enumerate(text):  # a parenthesis within a value is written as an escape without any
        depth += {"(": 1, ")": -1}.get(char, 0)
        if depth <= 0:
            ends.append(at)
    if depth or not text.startswith("(") or ends != [len(text) - 1] or not text.isprintable():
        raise ValueError("one filter in parentheses is wanted")
    return text


def _check_ldap_url(url: str) -> str:
    if url and not _LDAP_URL.fullmatch(url):
        raise ValueError("ldaps://HOST[:PORT] or ldap://HOST[:PORT] is wanted")
    return url


def _check_syslog_url(url: str) -> str:
    found = _SYSLOG_URL.fullmatch(url)
    if found is None or not 0 < int(found[3] or 1) <= 65_535:
        raise ValueError("udp://HOST[:PORT], tcp://HOST[:PORT] or tls://HOST[:PORT] is wanted")
    if found[2]:
        ipaddress.IPv6Address(found[2])  # a ValueError that says what is wrong
    return url


_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")
_LDAP_URL = re.compile(r"ldaps?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]{1,253})(:[0-9]{1,5})?/?")
_SYSLOG_URL = re.compile(r"(udp|tcp|tls)://(?:\[([0-9a-fA-F:.]{2,45})\]|[A-Za-z0-9.-]{1,253})(?::([0-9]{1,5}))?")
AttributeName = Annotated[str, AfterValidator(_check_attribute)]
"""The name of an LDAP attribute without options, or nothing."""
LdapFilter = Annotated[str, AfterValidator(_check_filter)]
SyslogUrl = Annotated[str, AfterValidator(_check_syslog_url)]
LdapUrl = Annotated[str, AfterValidator(_check_ldap_url)]
DomainId = Annotated[str, AfterValidator(_check_domain_id)]
"""The domainID of a MASA's audit log (RFC 8995, section 5.8.2), as it stands there."""
# an identifier could hold more than a host name, but names of servers are made of the trust domain, too
TrustDomain = Annotated[str, AfterValidator(lambda name: _check_host(name, MAX_TRUST_DOMAIN))]
HostName = Annotated[str, AfterValidator(lambda name: name and _check_host(name, 253))]
"""A host name, or nothing."""
ServerId = Annotated[str, AfterValidator(_check_address)]
AgentClass = Annotated[str, AfterValidator(_check_class)]
OidArc = Annotated[str, AfterValidator(_check_arc)]
Organization = Annotated[str, StringConstraints(min_length=1, max_length=64)]
CommandLine = Annotated[str, AfterValidator(_check_command)]
"""Words as a shell would split them; no shell is ever asked."""
