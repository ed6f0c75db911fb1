"""What `check`, `doctor` and /readyz look at; a row is {check, level, message, fix}, level ok, warning or error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from appliance.access.forwarding import check as check_forwarding
from appliance.access.service import AccessService
from appliance.access.sources.csv_file import read_whole
from appliance.access.sources.ldap_source import LdapSource
from appliance.access.sources.sync import judge
from appliance.authorities import load_authorities
from appliance.ca import read_weak_keys
from appliance.clock import Clock
from appliance.errors import HomeMissing, NotFound
from appliance.hierarchy import SEALING, SERVERS, key_file, read_server
from appliance.identity.assemble import load_policy
from appliance.identity.remote_verifier import read_destination
from appliance.initialise import need_passphrase
from appliance.keys import read_key
from appliance.settings import FILE_NAME, DirectorySettings, LoadedSettings, Settings
from appliance.store import directory_sources, owners, policies, rollovers
from appliance.store.owners import LDAP, LOCAL
from appliance.store.rollovers import RolloverRow
from appliance.store.store import Store
from appliance.store.transaction import Tx
from est.errors import Refusal
from radius import read_policy

Row = dict[str, Any]
_ADOPT = "appliance directory adopt REF --source local"
WARN_DAYS = (1, 7, 14, 30)


def row(check: str, level: str, message: str, fix: str = "") -> Row:
    """One line of `check` and `doctor`."""
    return {"check": check, "level": level, "message": message, "fix": fix}


def warning_days(left: timedelta) -> int | None:
    """The smallest of 1, 7, 14 and 30 days that is more than what is left; None if more than 30 are."""
    return next((days for days in WARN_DAYS if left < timedelta(days=days)), None)


def expiry(name: str, certificate: x509.Certificate, clock: Clock) -> Row:
    """How long a certificate lives: an error when it does not, a warning 30, 14, 7 and 1 days before."""
    left = certificate.not_valid_after_utc - clock.now()
    until = f"{certificate.not_valid_after_utc:%Y-%m-%d}"
    fix = (
        "appliance ca renew-servers"
        if name in SERVERS
        else f"appliance ca rollover start --role {name.partition('-')[0]}"
    )
    if left <= timedelta():
        return row(f"expiry-{name}", "error", f"expired {until}", fix)
    days = warning_days(left)
    if days is not None:
        unit = "day" if days == 1 else "days"
        return row(f"expiry-{name}", "warning", f"less than {days} {unit} left, until {until}", fix)
    return row(f"expiry-{name}", "ok", f"until {until}")


def check_home(loaded: LoadedSettings, clock: Clock, *, passphrase_file: Path | None) -> list[Row]:
    """Validates a home without starting anything: settings, files, keys against certificates, store, policies."""
    settings, home, rows = loaded.settings, loaded.settings.home, []

    def attempt(name: str, look: Callable[[], str], fix: str) -> bool:
        try:
            rows.append(row(name, "ok", look()))
        except Refusal as refused:
            rows.append(row(name, "error", f"{refused.reason}: {refused.detail}", fix))
            return False
        return True

    def settings_file() -> str:
        if not (home / FILE_NAME).exists():
            raise HomeMissing(f"{home} has no {FILE_NAME}")
        return f"{sum(origin != 'default' for origin in loaded.origins.values())} settings differ from their defaults"

    if not attempt("settings", settings_file, f"appliance init --home {home}"):
        return rows

    passphrase: list[bytes] = []
    found_policy: list[policies.PolicyRow | None] = []
    kept: list[list[RolloverRow]] = []
    absent: list[str] = []

    def store() -> str:
        opened = Store.open(settings.store_url, clock)
        try:
            found_policy.append(opened.read_sync(policies.newest))
            kept.append(opened.read_sync(rollovers.every))
            absent.extend(opened.read_sync(lambda tx: _absent_approvers(tx, settings)))
        finally:
            opened.close()
        return "opens, tables are current"

    attempt("store", store, "restore a backup: an empty store would have forgotten every revocation")

    def find() -> str:
        passphrase.append(need_passphrase(home, passphrase_file))
        return "found"

    if attempt("passphrase", find, "give --passphrase-file"):

        def keys() -> str:
            changes = kept[0] if kept else []
            found = load_authorities(home, settings, passphrase[0], changes)
            generations = (*found.issuing.values(), *found.beside)
            rows.append(expiry("root", found.root, clock))
            rows.extend(expiry(one.label, one.certificate, clock) for one in generations)
            for name in SERVERS:
                server = read_server(home, name, passphrase[0])
                rows.append(expiry(name, server.certificate, clock))
            read_key(key_file(home, SEALING), passphrase[0])
            return f"{len(generations) + len(SERVERS) + 1} keys open and match their certificates"

        attempt("keys", keys, "restore the files from a backup; modes must be 0600")

    def policy() -> str:
        newest = found_policy[0] if found_policy else None
        if newest is None:
            return "none published yet: every login is rejected"
        return f"revision {newest.revision}, {len(read_policy(newest.text).rules)} rules"

    attempt("policy", policy, "appliance policy publish FILE")
    attempt(
        "appraisal-policy",
        lambda: f"{len(load_policy(settings.identity.appraisal_policy).classes)} agent classes",
        "mend the file that identity.appraisal_policy names",
    )
    if named := settings.identity.named_approvers:

        def approvers() -> str:
            if absent:
                raise NotFound(f"identity.named_approvers: {absent[0]} is no active owner here")
            return f"{len(named)} agent classes with several approvers"

        attempt("approvers", approvers, "appliance owners show NAME shows the identifier and state of an owner")
    if settings.identity.verifier_url:
        attempt("verifier", lambda: _verifier(settings), "appliance settings show; see the manual: Use a verifier")
    if settings.directory.source != "none":
        attempt("directory", lambda: check_source(settings, clock), "appliance directory status")
    if settings.access.forward_to:
        attempt("log-forwarding", lambda: check_forwarding(settings.access), "mend the settings access.forward_*")
    attempt("weak-keys", lambda: f"{len(read_weak_keys(settings))} listed", "mend the files that ca.weak_keys names")
    return rows


def _absent_approvers(tx: Tx, settings: Settings) -> list[str]:
    """Who is named as an approver and cannot be asked."""
    found = sorted({one for named in settings.identity.named_approvers.values() for one in named})
    rows = {one: owners.by_identifier(tx, one) for one in found}
    return [one for one, owner in rows.items() if owner is None or owner.state != owners.ACTIVE]


def check_source(settings: Settings, clock: Clock) -> str:
    """The source of owners: what its settings name is there, and its last reading went well; raises DirectoryError."""
    chosen = settings.directory
    if chosen.source == "ldap":
        name, said = LDAP, LdapSource(chosen).check()
    else:
        read_whole(chosen.csv_file, chosen.max_bytes)
        name, said = LOCAL, f"{chosen.csv_file}"
    opened = Store.open(settings.store_url, clock)
    try:
        rows = opened.read_sync(directory_sources.every)
    finally:
        opened.close()
    return f"{said}; {judge(chosen, name, rows, clock.now())}"


def _verifier(settings: Settings) -> str:
    found = read_destination(settings.identity)
    return "none" if found is None else f"{found.url}, {len(found.keys)} keys"


def of_directory(states: Iterable[Mapping[str, Any]], settings: DirectorySettings) -> list[Row]:
    """How each source of owners is: what failed, what waits for a yes, what is too old."""
    rows = []
    for state in states:
        name, detail = state["source"], state["detail"]
        seen = f"{state['owners']} owners, {state['present']} present"
        if state["age_seconds"] is not None:
            seen += f", read whole {state['age_seconds'] // 60} min ago"
        said = f"{detail.get('reason')}: {detail.get('detail')}; {seen}"
        if name == LDAP and settings.source != "ldap":
            rows.append(row(f"directory-{name}", "warning", f"{seen}, and directory.source is not ldap", _ADOPT))
        elif not state["scheduled"]:
            rows.append(row(f"directory-{name}", "ok", seen))
        elif state["outcome"] == "frozen":
            rows.append(row(f"directory-{name}", "error", said, "appliance directory sync --confirm"))
        elif state["stale"] or state["outcome"] == "failed":
            level = "error" if state["stale"] else "warning"
            rows.append(row(f"directory-{name}", level, said, "appliance directory sync"))
        else:
            conflicts = detail.get("conflicts", 0)
            fix = "appliance directory sync --dry-run" if conflicts else ""
            message = f"{seen}, {conflicts} conflicts" if conflicts else seen
            rows.append(row(f"directory-{name}", "warning" if conflicts else "ok", message, fix))
    return rows


def of_access(access: AccessService, stale_seconds: float) -> list[Row]:
    """What decisions rest on: the snapshot's age, the policy."""
    age = access.snapshot_age_seconds
    seen = f"{age:.1f} s old, {len(access.snapshot.credentials)} credentials"
    fresh = (
        row("snapshot", "ok", seen) if age <= stale_seconds else row("snapshot", "error", seen, "see the store check")
    )
    policy = access.snapshot.policy
    if policy is None:
        missing = "none published: every login is rejected"
        return [fresh, row("policy", "warning", missing, "appliance policy publish FILE")]
    return [fresh, row("policy", "ok", f"revision {policy.revision}, {len(policy.rules)} rules")]
