"""An LDAP directory or Active Directory as a source of owners (RFC 4511, RFC 2696; StartTLS as RFC 4513, section 3).

Blocking: it runs in a thread of its own. One bind, one search in pages, and either everything or a refusal: a part is
never answered. Referrals are not followed; those among the entries are counted.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
import stat
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from appliance.access.sources import ldap_entries
from appliance.access.sources.errors import (
    DirectoryAnswerUnusable,
    DirectoryError,
    DirectoryIncomplete,
    DirectoryLoginRefused,
    DirectoryNotConfigured,
    DirectoryReferral,
    DirectoryTooLarge,
    DirectoryUnreachable,
    DirectoryUntrusted,
)
from appliance.access.sources.ldap_entries import Attributes, read_person, search_filter
from appliance.access.sources.ldap_wire import Budget, BudgetSocket, pinned_context, secure
from appliance.access.sources.plan import Person
from appliance.settings import DirectorySettings

_log = logging.getLogger(__name__)
_START_TLS = "1.3.6.1.4.1.1466.20037"
_PAGED = "1.2.840.113556.1.4.319"
_SUCCESS, _REFERRAL = 0, 10
_LIMITS = frozenset({3, 4, 11})  # time, size and administrative limit
_REFUSED = frozenset({7, 8, 13, 14, 48, 49, 50, 53})
_MAX_PASSWORD = 1024


@dataclass(frozen=True, slots=True)
class Reading:
    """Everything that a directory said, and how many referrals stood among it."""

    people: tuple[Person, ...]
    referrals: int = 0


class LdapSource:
    """Reads people from the directory that the settings name."""

    name = "ldap"

    def __init__(self, settings: DirectorySettings) -> None:
        self._settings = settings
        self.attributes = Attributes(
            ref=settings.ldap_ref,
            name=settings.ldap_name,
            key=settings.ldap_key,
            departments=settings.ldap_departments,
            groups=settings.ldap_groups,
            group_base=settings.ldap_group_base,
        )

    def check(self) -> str:
        """What the settings name is there and fits; raises DirectoryNotConfigured."""
        self._library()
        self._context()
        self._password()
        return f"{self._settings.ldap_url}, base {self._settings.ldap_base!a}"

    def read(self, now: datetime, stop: threading.Event) -> Reading:
        """Everybody; raises DirectoryError."""
        return self._search(search_filter(self._settings.ldap_filter, self._settings.ldap_ref), now, stop)

    def find(self, ref: str, now: datetime, stop: threading.Event) -> Reading:
        """Those who have this ref; raises DirectoryError."""
        return self._search(search_filter(self._settings.ldap_filter, self._settings.ldap_ref, ref), now, stop)

    # -- what the settings say

    def _library(self) -> Any:
        settings = self._settings
        if not settings.ldap_url:
            raise DirectoryNotConfigured("directory.ldap_url is not set")
        for name in ("ldap_base", "ldap_ref", "ldap_name", "ldap_key"):
            if not getattr(settings, name):
                raise DirectoryNotConfigured(f"directory.{name} is not set")
        if not self._is_secured and not _is_here(self._host):
            raise DirectoryNotConfigured(
                "directory.ldap_start_tls is off and the server elsewhere: the password would travel in clear"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it uses old names of pyasn1
                import ldap3
        except ImportError as cause:
            raise DirectoryNotConfigured("the package ldap3 is missing: install campus-appliance[ldap]") from cause
        return ldap3

    @property
    def _is_secured(self) -> bool:
        return self._settings.ldap_url.startswith("ldaps:") or self._settings.ldap_start_tls

    @property
    def _host(self) -> str:
        return urlsplit(self._settings.ldap_url).hostname or ""

    def _context(self) -> ssl.SSLContext | None:
        if not self._is_secured:
            return None
        path = self._settings.ldap_ca_file
        if path is None:
            raise DirectoryNotConfigured("directory.ldap_ca_file is not set")
        try:
            return pinned_context(path)
        except (OSError, ValueError) as cause:
            raise DirectoryNotConfigured(f"directory.ldap_ca_file: cannot read certificates from {path}") from cause

    def _password(self) -> str:
        settings, path = self._settings, self._settings.ldap_password_file
        if not settings.ldap_bind_dn:
            return ""
        if path is None:
            raise DirectoryNotConfigured("directory.ldap_password_file is not set")
        try:
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                raise DirectoryNotConfigured(f"{path} can be read by others than its owner; wanted is mode 0600")
            password = path.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as cause:
            raise DirectoryNotConfigured(f"directory.ldap_password_file: cannot read {path}") from cause
        if not 0 < len(password) <= _MAX_PASSWORD:
            # a name with an empty password is no login but an anonymous one (RFC 4513, section 5.1.2)
            raise DirectoryNotConfigured(f"{path} holds no password")
        return password

    # -- the reading

    def _search(self, filter_: str, now: datetime, stop: threading.Event) -> Reading:
        settings, library = self._settings, self._library()
        context, password = self._context(), self._password()
        ends_at = time.monotonic() + settings.ldap_total_seconds
        budget = Budget(settings.max_bytes, settings.ldap_timeout_seconds, ends_at, stop)
        with _translated(library, budget):
            connection = self._open(library)
            try:
                self._secure(connection, context, budget)
                if password:
                    connection.bind(read_server_info=False)
                    _check_result(connection.result, "the login")
                return self._pages(connection, filter_, now)
            finally:
                _close(connection)

    def _open(self, library: Any) -> Any:
        settings = self._settings
        url = urlsplit(settings.ldap_url)
        server = library.Server(
            self._host,
            port=url.port or (636 if url.scheme == "ldaps" else 389),
            get_info=library.NONE,
            connect_timeout=settings.ldap_timeout_seconds,
        )
        connection = library.Connection(
            server,
            user=settings.ldap_bind_dn or None,
            password=self._password() or None,
            authentication=library.SIMPLE if settings.ldap_bind_dn else library.ANONYMOUS,
            auto_bind=library.AUTO_BIND_NONE,
            auto_referrals=False,
            read_only=True,
            check_names=False,
            receive_timeout=settings.ldap_timeout_seconds,
        )
        connection.open(read_server_info=False)
        return connection

    def _secure(self, connection: Any, context: ssl.SSLContext | None, budget: Budget) -> None:
        """TLS before anything is said, or after StartTLS (RFC 4511, section 4.14)."""
        plain = connection.socket
        connection.socket = BudgetSocket(plain, budget)
        if context is None:
            return
        if self._settings.ldap_url.startswith("ldap:"):
            connection.extended(_START_TLS)
            if connection.result.get("result") != _SUCCESS:
                raise DirectoryUntrusted("the directory does not do StartTLS")
        try:
            connection.socket = secure(plain, context, self._host, budget)
        except (ssl.SSLError, ssl.CertificateError) as cause:
            raise DirectoryUntrusted(f"TLS failed: {_words(cause)}") from cause

    def _pages(self, connection: Any, filter_: str, now: datetime) -> Reading:
        settings = self._settings
        people: list[Person] = []
        referrals = 0
        cookie: bytes | None = None
        while True:
            connection.search(
                settings.ldap_base,
                filter_,
                search_scope="SUBTREE",
                dereference_aliases="NEVER",
                attributes=list(self.attributes.wanted),
                paged_size=settings.ldap_page,
                paged_criticality=True,
                paged_cookie=cookie,
            )
            _check_result(connection.result, "the search")
            for entry in connection.response or ():
                if entry.get("type") == "searchResRef":
                    referrals += 1
                elif entry.get("type") == "searchResEntry":
                    if len(people) == settings.max_owners:
                        raise DirectoryTooLarge(f"more than {settings.max_owners} entries", limit=settings.max_owners)
                    people.append(read_person(_values(entry), self.attributes, now))
            control = (connection.result.get("controls") or {}).get(_PAGED)
            before, cookie = cookie, (control or {}).get("value", {}).get("cookie")
            if not cookie:
                return Reading(tuple(people), referrals)
            if cookie == before and not connection.response:
                raise DirectoryAnswerUnusable("the directory goes round in circles")


def _values(entry: Any) -> dict[str, list[bytes]]:
    """Attributes by lower-case name; options such as a language or AD's ranges are cut off, and values put together."""
    found: dict[str, list[bytes]] = {}
    for name, values in entry["raw_attributes"].items():
        kept = found.setdefault(str(name).partition(";")[0].lower(), [])
        kept += [bytes(value) for value in values][: ldap_entries.MAX_VALUES]
    return found


def _check_result(result: Any, what: str) -> None:
    code = result.get("result")
    if code == _SUCCESS:
        return
    said = f"{what} ended with {result.get('description')} ({code})"
    if code == _REFERRAL:
        raise DirectoryReferral(f"{what} was referred to another server, which is not asked")
    if code in _LIMITS:
        raise DirectoryIncomplete(said)
    if code in _REFUSED:
        raise DirectoryLoginRefused(said)
    raise DirectoryAnswerUnusable(said)


def _close(connection: Any) -> None:
    """Say goodbye if the other side still listens; whether it does is of no interest any more."""
    try:
        connection.unbind()
    except Exception as failure:  # noqa: BLE001 - the answer is complete or refused already
        _log.debug("event=ldap-unbind-failed error=%r", failure)


@contextmanager
def _translated(library: Any, budget: Budget) -> Iterator[None]:
    """ldap3's and the system's errors as ours; ldap3 keeps of most causes the text alone."""
    core = library.core.exceptions
    try:
        yield
    except DirectoryError:
        raise
    except core.LDAPExceptionError as cause:
        if budget.received > budget.max_bytes:
            raise DirectoryTooLarge(f"more than {budget.max_bytes} octets", limit=budget.max_bytes) from cause
        if isinstance(cause, core.LDAPCommunicationError | core.LDAPMaximumRetriesError):
            raise DirectoryUnreachable(_words(cause)) from cause
        raise DirectoryAnswerUnusable(_words(cause)) from cause
    except OSError as cause:
        raise DirectoryUnreachable(_words(cause)) from cause
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, struct.error) as cause:
        raise DirectoryAnswerUnusable(f"an answer cannot be read ({type(cause).__name__})") from cause


def _words(cause: BaseException) -> str:
    text = getattr(cause, "verify_message", "") or getattr(cause, "strerror", None) or str(cause)
    return "".join(one if one.isprintable() else "?" for one in str(text))[:300] or type(cause).__name__


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
