"""wpa_supplicant's eapol_test as a supplicant: a foreign EAP-TLS peer for demonstrations and interoperability tests."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lab.supplicant import Code, Outcome, TlsVersion

_ATTRIBUTE: Final = re.compile(r"Attribute (\d+) \([^)]*\) length=\d+\n\s+Value: ('[^\n]*'|[0-9a-f]*)")
_CODES: Final[dict[int, Code]] = {2: "accept", 3: "reject"}


def find_eapol_test() -> str | None:
    """The program's path, or None where it is not installed (Debian package eapoltest)."""
    return shutil.which("eapol_test")


async def run_eapol_test(
    server: str,
    port: int,
    secret: bytes,
    *,
    identity: str,
    certificate_chain_pem: bytes,
    key_pem: bytes,
    ca_pem: bytes,
    server_name: str,
    tls_version: TlsVersion = "1.3",
    calling_station: str = "02-00-00-00-00-01",
    seconds: float = 15.0,
    repeat: int = 0,
    keep: Path | None = None,
    attributes: Mapping[int, str | int] | None = None,
) -> Outcome:
    """Log in once (or 1 + `repeat` times, offering to resume) with eapol_test; `keep` is a folder for its output.

    `attributes` are what a NAS adds to its requests, by their number.

    Raises FileNotFoundError where the program is not installed. eapol_test takes the shared secret in its arguments
    only, so this is for laboratories.
    """
    program = find_eapol_test()
    if program is None:
        raise FileNotFoundError("eapol_test is not installed (Debian: apt install eapoltest)")
    with tempfile.TemporaryDirectory(prefix="eapol-") as name:
        folder = Path(name)
        files = {"client.pem": certificate_chain_pem, "client.key": key_pem, "ca.pem": ca_pem}
        files["network.conf"] = network_block(
            identity, folder / "client.pem", folder / "client.key", folder / "ca.pem", server_name, tls_version
        ).encode()
        for file, octets in files.items():
            (folder / file).touch(0o600)
            (folder / file).write_bytes(octets)
        station = calling_station.replace("-", ":")
        arguments = ["-c", str(folder / "network.conf"), "-a", server, "-p", str(port), "-s", secret.decode()]
        arguments += ["-M", station, "-t", str(int(seconds)), *(["-r", str(repeat)] if repeat else [])]
        for code, value in (attributes or {}).items():
            arguments += ["-N", f"{code}:{'d' if isinstance(value, int) else 's'}:{value}"]
        process = await asyncio.create_subprocess_exec(
            program, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(), seconds + 5)
        except TimeoutError:
            process.kill()
            await process.wait()
            return Outcome("timeout", trouble="eapol_test did not end in time")
    text = output.decode("utf-8", "replace")
    if keep is not None:
        (keep / "eapol_test.log").write_text(text, encoding="utf-8")
    return read_output(text)


def network_block(
    identity: str, certificate: Path, key: Path, ca: Path, server_name: str, tls_version: TlsVersion
) -> str:
    """A wpa_supplicant network block that pins the root together with the RADIUS server's name."""
    switch = "tls_disable_tlsv1_3=0" if tls_version == "1.3" else "tls_disable_tlsv1_3=1"
    lines = [
        "key_mgmt=IEEE8021X",
        "eapol_flags=0",
        "eap=TLS",
        f'identity="{identity}"',
        f'ca_cert="{ca}"',
        f'client_cert="{certificate}"',
        f'private_key="{key}"',
        f'domain_match="{server_name}"',
        f'phase1="{switch}"',
    ]
    return "network={\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def read_output(text: str) -> Outcome:
    """The outcome in eapol_test's debug output."""
    answers = re.split(r"\nRADIUS message: code=", text)
    last = next((part for part in reversed(answers) if re.match(r"(2|3) ", part)), "")
    attributes: dict[int, list[bytes]] = {}
    for number, value in _ATTRIBUTE.findall(last):
        octets = value[1:-1].encode() if value.startswith("'") else bytes.fromhex(value)
        attributes.setdefault(int(number), []).append(octets)
    code: Code = _CODES[int(last[0])] if last else "timeout"
    succeeded = text.rstrip().endswith("SUCCESS")
    eap = b"".join(attributes.get(79, []))
    keys = re.findall(r"MPPE keys OK: (\d+)  mismatch: (\d+)", text)
    versions = re.findall(r"SSL: Using TLS version TLSv(1\.\d)", text)
    vlan = attributes.get(81)
    trouble = re.findall(r"(?:TLS: Certificate verification failed[^\n]*|CTRL-EVENT-EAP-TLS-CERT-ERROR[^\n]*)", text)
    return Outcome(
        code="broken" if code == "accept" and not succeeded else code,
        vlan=vlan[0].decode() if vlan else None,
        reply_message=b"".join(attributes.get(18, [])).decode("utf-8", "replace"),
        msk_matches=bool(keys) and int(keys[-1][0]) > 0 and int(keys[-1][1]) == 0,
        tls_version=versions[-1] if versions else "",
        rounds=len(re.findall(r"RADIUS message: code=(?:2|3|11) ", text)),
        eap_code=eap[0] if eap else None,
        protected_success="EAP-TLS: ACKing protected success indication" in text
        or "EAP-TLS: ACKing Commitment Message" in text,
        trouble=trouble[0] if trouble else "",
        attributes=attributes,
    )
