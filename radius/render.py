"""Values -> a complete FreeRADIUS 3.2 configuration folder, made of the templates in radius/freeradius."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from radius import raddb
from radius.errors import RaddbValueInvalid
from radius.raddb import NasEntry, RaddbValues, RadSec, check_nas

__all__ = ["NasEntry", "RadSec", "RaddbValues", "check_nas", "render", "write_raddb"]

FILE_MODE: Final = 0o640
FOLDER_MODE: Final = 0o750
_TEMPLATES: Final = (
    "radiusd.conf",
    "dictionary",
    "clients.conf",
    "mods-enabled/eap",
    "mods-enabled/rest",
    "mods-enabled/expr",
    "mods-enabled/always",
    "sites-enabled/default",
    "sites-enabled/check-eap-tls",
)
_OPTIONAL: Final = {
    "radsec": "sites-enabled/radsec",
    "last-known-good": "mods-enabled/last-known-good",
}
"""Templates under parts/ that become files of their own where they are wanted."""
_MARK: Final = re.compile(r"@([a-z0-9_]+)@")
_CACHED: Final = (
    "Tunnel-Type",
    "Tunnel-Medium-Type",
    "Tunnel-Private-Group-Id",
    "User-Name",
    "Class",
    "Filter-Id",
    "Session-Timeout",
    "Termination-Action",
    "Aruba-User-Role",
)
"""Reply attributes that the last known good answer gives again."""
# FreeRADIUS keeps an answered request for cleanup_delay, and counts it: a login of up to eight round trips counts eight
# times for five seconds. Too few, and it drops logins of a busy hour, which the supplicants then begin again.
_REQUESTS_PER_SESSION: Final = 8
_LOOPBACK: Final = '((&Tmp-String-1 == "127.0.0.1") || (&Tmp-String-1 == "::1"))'
_NAS_OF_CONNECTION: Final = "%{listen:TLS-Client-Cert-Common-Name}"

# Only silence is silence: no connection, no answer in time, one of 500 and above, or one that nobody can read. An
# answer of 400 to 499 is the appliance saying no, in every mode.
_STATUS: Final = "&reply:REST-HTTP-Status-Code"
_SILENT: Final = f"fail && (!{_STATUS} || ({_STATUS} < 400) || ({_STATUS} >= 500))"
# A no that the appliance has in its log, and that the outer server need not tell it of.
_SAID_NO: Final = """update outer.control {
	&Tmp-Integer-0 := 1
}"""
_IS_NO: Final = "updated && (&control:Auth-Type == Reject)"
_ASK_CLOSED: Final = """\t\trest
		if ({is_no}) {{
{said_no}
		}}"""
_ASK: Final = """\t\trest {{
			fail = 1
		}}
		if ({silent}) {{
{when_silent}
		}}{otherwise}
		elsif ({is_no}) {{
{said_no}{on_no}
		}}"""
# Without an end, a port would keep what it got in an outage for as long as its device stays.
_OUTAGE_SECONDS: Final = 300
_GUEST: Final = """update control {{
	&Auth-Type := Accept
}}
update reply {{
	&Tunnel-Type := VLAN
	&Tunnel-Medium-Type := IEEE-802
	&Tunnel-Private-Group-Id := "{vlan}"
	&User-Name := "%{{TLS-Client-Cert-Common-Name}}"
	&Session-Timeout := {seconds}
	&Termination-Action := RADIUS-Request
}}"""
_FROM_CACHE: Final = """if (&TLS-Client-Cert-Serial && &TLS-Client-Cert-X509v3-Authority-Key-Identifier) {{
	update control {{
		&Cache-Read-Only := yes
	}}
	last_known_good
	if (ok) {{
		update control {{
			&Auth-Type := Accept
		}}
		if (!&reply:Session-Timeout || (&reply:Session-Timeout > {seconds})) {{
			update reply {{
				&Session-Timeout := {seconds}
			}}
		}}
		update reply {{
			&Termination-Action := RADIUS-Request
		}}
	}}{on_miss}
}}"""
_INTO_CACHE: Final = """
		elsif (&control:Auth-Type == Accept) {
			# negative: the entry is made anew, with this life
			update control {
				&Cache-TTL := -@cache_seconds@
			}
			last_known_good
		}"""
_OUT_OF_CACHE: Final = """
			# a no is remembered by forgetting the yes before it
			update control {
				&Cache-TTL := 0
			}
			last_known_good {
				notfound = 1
			}"""


def render(values: RaddbValues) -> dict[str, str]:
    """File name -> text of the whole folder. Raises RaddbValueInvalid naming the value that may not be written."""
    if values.tls_min > values.tls_max:
        raise RaddbValueInvalid("tls_min is above tls_max", name="tls_min")
    marks = _marks(values)
    files = {name: _fill(_template(name), marks) for name in _TEMPLATES}
    if values.radsec is not None:
        files[_OPTIONAL["radsec"]] = _fill(_part("radsec"), marks)
        files["certs/radsec-ca.pem"] = raddb.pem("radsec ca_pem", values.radsec.ca_pem)
    if values.fail_mode == "last-known-good":
        files[_OPTIONAL["last-known-good"]] = _fill(_part("last-known-good"), marks)
    files["certs/server.pem"] = raddb.pem("certificate_chain_pem", values.certificate_chain_pem)
    files["certs/server.key"] = raddb.pem("key_pem", values.key_pem, secret=True)
    files["certs/client-cas.pem"] = raddb.pem("client_ca_pem", values.client_ca_pem)
    files["certs/decision-ca.pem"] = raddb.pem("decision_ca_pem", values.decision_ca_pem)
    if values.client_pem:
        files["certs/decision-client.pem"] = raddb.pem("client_pem", values.client_pem)
        files["certs/decision-client.key"] = raddb.pem("client_key_pem", values.client_key_pem, secret=True)
    return files


def write_raddb(files: Mapping[str, str], directory: Path, *, owner: tuple[int, int] | None = None) -> None:
    """Write the rendered files under `directory`, each in one step, readable by owner and group only; make run/.

    What an earlier rendering left and this one has not is removed. `owner` (uid, gid): who FreeRADIUS runs as, when we
    are root; the group may read the files, and run/ is the user's own. Raises OSError as the file system does.
    """
    for folder in (directory, directory / "run"):
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    if owner is not None:
        os.chown(directory, -1, owner[1])
        os.chown(directory / "run", *owner)
    for name, text in files.items():
        path = directory / name
        if not path.parent.exists():
            path.parent.mkdir(mode=FOLDER_MODE)
        if owner is not None:
            os.chown(path.parent, -1, owner[1])
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if owner is not None:
                os.chown(descriptor, -1, owner[1])
            file.write(text)
        fresh.replace(path)
    for part in ("mods-enabled", "sites-enabled", "certs"):
        for path in (directory / part).iterdir() if (directory / part).is_dir() else ():
            if path.is_file() and f"{part}/{path.name}" not in files:
                path.unlink()


def read_raddb(directory: Path) -> dict[str, str]:
    """The files of a written folder, as render() gave them; raises OSError."""
    names = ["radiusd.conf", "dictionary", "clients.conf"]
    for folder in ("mods-enabled", "sites-enabled", "certs"):
        names += sorted(f"{folder}/{path.name}" for path in (directory / folder).iterdir() if path.name[0] != ".")
    return {name: (directory / name).read_text(encoding="utf-8") for name in names}


def _marks(values: RaddbValues) -> dict[str, str]:
    checked, number = raddb.checked, raddb.number
    marks = {
        "directory": checked("directory", values.directory, raddb.PATH),
        "library_directory": checked("library_directory", values.library_directory, raddb.PATH),
        "decision_url": checked("decision_url", values.decision_url, raddb.URL),
        "token": checked("token", values.token, raddb.TOKEN, secret=True),
        "owner_id_oid": checked("owner_id_oid", values.owner_id_oid, raddb.OID),
        "tls_min": raddb.version("tls_min", values.tls_min),
        "tls_max": raddb.version("tls_max", values.tls_max),
        "fragment_bytes": number("fragment_bytes", values.fragment_bytes, 200, 4000),
        "session_seconds": number("session_seconds", values.session_seconds, 1, 600),
        "max_sessions": number("max_sessions", values.max_sessions, 1, 1_000_000),
        "max_requests": str(max(1024, values.max_sessions * _REQUESTS_PER_SESSION)),
        "reject_delay_seconds": number("reject_delay_seconds", values.reject_delay_seconds, 0, 5),
        "cache_seconds": number("cache_seconds", values.cache_seconds, 1, raddb.MAX_CACHE_SECONDS),
        "clients": _clients(values),
        "rest_tls": _rest_tls(values),
        "mac_bypass_words": ", and MAC bypass from this machine" if values.mac_bypass else "",
        "cached": "\n".join(f"\t\t&reply:{name} := &reply:{name}" for name in _CACHED),
    }
    marks["listen"] = _listeners(values)
    marks["ask"] = _ask(values, marks)
    marks["rest_failure"] = _instance(values, marks, "failure", values.failure_url, "post-auth", "0.3", "0.5")
    marks["rest_accounting"] = _instance(
        values, marks, "accounting_hook", values.accounting_url, "accounting", "0.5", "2.0"
    )
    marks["tell_failure"] = _fill(_part("tell-failure"), marks) if values.failure_url else ""
    without_bypass = "\t\tif (!&EAP-Message) {"
    for name, where in (("mac_bypass_loopback", f" && {_LOOPBACK}"), ("mac_bypass_radsec", "")):
        marks[name] = _fill(_part("mac-bypass"), marks | {"mac_where": where}) if values.mac_bypass else without_bypass
    if values.radsec is not None:
        marks |= _radsec(values.radsec)
    # the same sections in both servers; only the name of the NAS comes from elsewhere
    for name, nas_name, check in (
        ("sections", "%{client:shortname}", ""),
        ("radsec_sections", _NAS_OF_CONNECTION, marks.get("radsec_check", "")),
    ):
        own = {**marks, "nas_name": nas_name, "sender_check": check}
        accounting = _fill(_part("accounting"), own) if values.accounting_url else ""
        marks[name] = _fill(_part("sections"), {**marks, "accounting": accounting})
    return marks


def _rest_tls(values: RaddbValues) -> str:
    lines = [
        "# ca_info_file is the trust anchor (ca_file would be the issuer to compare); the folder holds no hashed",
        "# links, so that it takes the place of the system's public CAs and adds none.",
        "ca_info_file = ${confdir}/certs/decision-ca.pem",
        "ca_path = ${confdir}/certs",
        "check_cert = yes",
        "check_cert_cn = yes",
    ]
    if values.client_pem:
        lines += [
            "certificate_file = ${confdir}/certs/decision-client.pem",
            "private_key_file = ${confdir}/certs/decision-client.key",
        ]
    return "\n".join("\t\t" + line for line in lines)


def _listeners(values: RaddbValues) -> str:
    blocks = []
    for at, one in enumerate((values.address, *values.more_addresses)):
        where = raddb.address("address" if not at else "more_addresses", one)
        kinds = [("auth", raddb.number("port", values.port, 1, 65535))]
        if values.accounting_url:
            kinds.append(("acct", raddb.number("accounting_port", values.accounting_port, 1, 65535)))
        blocks += [
            f"\tlisten {{\n\t\ttype = {kind}\n\t\tipaddr = {where}\n\t\tport = {port}\n\t}}" for kind, port in kinds
        ]
    return "\n".join(blocks)


def _clients(values: RaddbValues) -> str:
    blocks: list[str] = []
    names: set[str] = set()
    networks: set[str] = set()
    more = "\n\tlimit_proxy_state = yes" if values.limit_proxy_state else ""
    for entry in values.nas:
        check_nas(entry)
        network = raddb.network("address", entry.address)
        if entry.name in names or network in networks:
            raise RaddbValueInvalid(f"two NAS share the name or address of {entry.name}", name="nas")
        names.add(entry.name)
        networks.add(network)
        blocks.append(
            f"client {entry.name} {{\n\tipaddr = {network}\n\tshortname = {entry.name}\n"
            f'\tsecret = "{entry.secret}"\n\trequire_message_authenticator = yes{more}\n}}'
        )
    return "\n".join(blocks)


def _ask(values: RaddbValues, marks: Mapping[str, str]) -> str:
    if values.fail_mode not in ("closed", "guest", "last-known-good"):
        raise RaddbValueInvalid("fail_mode must be closed, guest or last-known-good", name="fail_mode")
    if values.fail_mode == "guest" and values.guest_vlan is None:
        raise RaddbValueInvalid("fail_mode guest needs a guest_vlan", name="guest_vlan")
    if values.fail_mode == "closed":
        return _ASK_CLOSED.format(is_no=_IS_NO, said_no=_indented(_SAID_NO, 3))
    guest = ""
    if values.guest_vlan is not None:
        guest = _GUEST.format(vlan=raddb.vlan("guest_vlan", values.guest_vlan), seconds=_OUTAGE_SECONDS)
    if values.fail_mode == "guest":
        when_silent, otherwise, on_no = f"# The site's written choice for a silent appliance.\n{guest}", "", ""
    else:
        miss = f"\n\telse {{\n{_indented(guest, 2)}\n\t}}" if guest else ""
        when_silent = _FROM_CACHE.format(on_miss=miss, seconds=_OUTAGE_SECONDS)
        otherwise, on_no = _fill(_INTO_CACHE, marks), _OUT_OF_CACHE
    return _ASK.format(
        silent=_SILENT, when_silent=_indented(when_silent, 3), otherwise=otherwise,
        is_no=_IS_NO, said_no=_indented(_SAID_NO, 3), on_no=on_no,
    )  # fmt: skip


def _indented(text: str, tabs: int) -> str:
    return "\n".join("\t" * tabs + line for line in text.split("\n"))


def _instance(
    values: RaddbValues, marks: Mapping[str, str], name: str, url: str, section: str, connect: str, timeout: str
) -> str:
    """Another rlm_rest instance, where its URL is given."""
    if not url:
        return ""
    own = {
        "name": name,
        "url": raddb.checked(f"{name} url", url, raddb.URL),
        "section": section,
        "connect_timeout": connect,
        "timeout": timeout,
    }
    return _fill(_part("rest-instance"), {**marks, **own})


def _radsec(radsec: RadSec) -> dict[str, str]:
    prefix = re.escape(raddb.checked("radsec origin", radsec.origin, raddb.ORIGIN)).replace("/", r"\/") + r"\/nas\/"
    serials = [raddb.checked("radsec serial", one, raddb.SERIAL) for one in radsec.serials]
    # FreeRADIUS writes serial numbers bytewise
    cases = "".join(
        f'\t\t\tcase "{one.zfill(len(one) + len(one) % 2)}" {{\n\t\t\t\tnoop\n\t\t\t}}\n' for one in serials
    )
    check = {"nas_prefix": prefix, "radsec_serials": cases.rstrip("\n")}
    return {
        "radsec_address": raddb.address("radsec address", radsec.address),
        "radsec_port": raddb.number("radsec port", radsec.port, 1, 65535),
        "radsec_check": _fill(_part("radsec-check"), check),
    }


def _part(name: str) -> str:
    return _template(f"parts/{name}")


def _template(name: str) -> str:
    found = resources.files("radius") / "freeradius"
    for part in name.split("/"):
        found = found / part
    return found.read_text(encoding="utf-8")


def _fill(template: str, marks: Mapping[str, str]) -> str:
    """One pass, so that a value can never bring a mark of its own."""
    return _MARK.sub(lambda match: marks[match[1]], template)
