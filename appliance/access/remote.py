"""A RADIUS server on another machine: enrolled once by a secret, from then on by its own certificate.

Everything lies in one folder: `own.key` and `own.pem` (made and got here), `root.pem` (believed by its fingerprint),
`site.json` (whom to ask), and `raddb`, which FreeRADIUS runs on. Running it again goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from appliance.access.raddb_folder import check_reachable, find_libraries, find_program, knows, owner_of, run_as
from appliance.access.supervisor import check_folder
from appliance.errors import ApplianceError
from appliance.proxy.connection import Connection, Target, open_anchorless, open_verified
from appliance.proxy.state import ClientFiles
from est import cms, csr, transfer
from est.certificates import aki_of, pem_certificates, ski_of
from est.chains import TrustAnchors
from est.client import CaCertificates, EstClient, Pending
from est.errors import EstError
from est.exchange import Call
from radius.errors import RaddbValueInvalid
from radius.render import NasEntry, RaddbValues, RadSec, read_raddb, render, write_raddb

SITE_FILE: Final = "site.json"
RADDB: Final = "raddb"
_LABEL: Final = "radius"
_SECONDS: Final = 10.0
_RENEW_AT: Final = 2 / 3
_FROM_URL: Final = ("decision_url", "failure_url", "accounting_url")


class SiteNotUsable(ApplianceError):
    """Enrolling this machine's RADIUS server does not work with what was given or answered; `detail` says what."""

    reason: ClassVar[str] = "site-not-usable"


@dataclass(frozen=True, slots=True)
class Site:
    """What `enroll` was told: the appliance's device and decision ports, its root's SHA-256, and our addresses."""

    url: str
    decision: str
    fingerprint: str
    host: str
    port: int
    accounting_port: int
    radsec_host: str
    user: str


def write_site(folder: Path, site: Site) -> None:
    """Keep it; a folder that belongs to another appliance is refused."""
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    if (folder / SITE_FILE).exists() and read_site(folder).fingerprint != site.fingerprint:
        raise SiteNotUsable(f"{folder} is enrolled with another appliance; choose another --dir")
    _write(folder / SITE_FILE, json.dumps(dataclasses.asdict(site)).encode())


def read_site(folder: Path) -> Site:
    """Raises SiteNotUsable."""
    try:
        return Site(**json.loads((folder / SITE_FILE).read_text()))
    except (OSError, ValueError, TypeError) as cause:
        raise SiteNotUsable(f"{folder} is not enrolled: appliance radius enroll URL --dir {folder}") from cause


class Remote:
    """One RADIUS server's machine. Every method may be called again after any failure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.site = read_site(folder)
        self._config = folder / "configuration.json"
        self._written: dict[str, str] | None = None
        self._settle()
        try:
            self._est_at = Target.read(self.site.url)
            self._decision_at = Target.read(self.site.decision)
            self._fingerprint = bytes.fromhex(self.site.fingerprint.replace(":", ""))
        except ValueError as cause:
            raise SiteNotUsable(str(cause)) from cause
        if len(self._fingerprint) != 32:
            raise SiteNotUsable("the fingerprint is the SHA-256 of the root certificate, 64 hex digits")

    async def enroll(self, secret: str) -> bool:
        """Get the first certificate for a one-time secret NAME:SECRET; False if there is one already."""
        if (self.folder / "own.pem").exists():
            return False
        if not secret:
            raise SiteNotUsable("the first time wants --secret-file with NAME:SECRET")
        root = await self._confirmed_root()
        _write(self.folder / "root.pem", root.public_bytes(Encoding.PEM))
        authorization = "Basic " + base64.b64encode(secret.encode()).decode()
        connection = await open_verified(self._est_at, (root,), None, seconds=_SECONDS)
        try:
            await self._get_certificate(connection, authorization)
        finally:
            await connection.close()
        return True

    async def renew(self, now: datetime | None = None) -> bool:
        """A newer certificate with a new key, at two thirds of the life of the one in use; whether there is one."""
        certificate = pem_certificates((self.folder / "own.pem").read_bytes())[0]
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        if (now or datetime.now(UTC)) < certificate.not_valid_before_utc + life * _RENEW_AT:
            return False
        await self._renew(certificate)
        return True

    async def _renew(self, certificate: x509.Certificate) -> None:
        connection = await open_verified(self._est_at, (self._root(),), self._client(), seconds=_SECONDS)
        try:
            await self._get_certificate(connection, "", renewed=certificate)
        finally:
            await connection.close()

    async def fetch(self) -> bool:
        """The configuration of now, rendered and checked here; whether it differs from the one in use.

        Where the CAs have changed, the root that is believed and our own certificate follow at once. Raises what the
        connection raises, SiteNotUsable, FreeRadiusMissing, FreeRadiusRefused; FreeRADIUS then goes on with what it
        has.
        """
        connection = await open_verified(self._decision_at, (self._root(),), self._client(), seconds=_SECONDS)
        old = json.loads(self._config.read_text()) if self._config.exists() else {}
        token = old.get("values", {}).get("token", "")
        headers = {"accept": "application/json", **({"authorization": f"Bearer {token}"} if token else {})}
        try:
            reply = await connection.exchange(
                Call("GET", "/v1/radius/configuration", headers=headers), seconds=_SECONDS, max_body_bytes=8_388_608
            )
        finally:
            await connection.close()
        if reply.status != 200:
            raise SiteNotUsable(f"the appliance answered the question for a configuration with {reply.status}")
        try:
            told = transfer.read_json(reply.body, max_bytes=8_388_608)
            await self._follow(told)  # type: ignore[arg-type]
            files = render(self._values(told))  # type: ignore[arg-type]
        except (EstError, RaddbValueInvalid, KeyError, TypeError, ValueError) as cause:
            raise SiteNotUsable(f"the appliance's configuration cannot be used: {cause}") from cause
        _write(self._config, reply.body)
        raddb = self.folder / RADDB
        # what was written and then did not come up was put back, and is not tried again and again
        if files == self._written or (raddb.exists() and _same(raddb, files)):
            return False
        who = run_as(self.site.user)
        check_reachable(raddb, who)
        with tempfile.TemporaryDirectory(prefix="raddb-") as name:
            if who is not None:
                os.chown(name, who.uid, who.gid)
            conf = files["radiusd.conf"].replace(str(raddb), name)
            write_raddb({**files, "radiusd.conf": conf}, Path(name), owner=owner_of(who))
            await check_folder(Path(name), who)
        write_raddb(files, raddb, owner=owner_of(who))
        self._written = files
        return True

    def refresh(self) -> bool:
        """Renew when it is time, and fetch; for a thread of its own."""

        async def both() -> bool:
            renewed = await self.renew()
            return await self.fetch() or renewed

        return asyncio.run(both())

    async def _follow(self, told: Mapping[str, Any]) -> None:
        if "root_pem" in told:
            root = pem_certificates(told["root_pem"].encode())[0]
            if root != self._root():
                if root != await self._successor():
                    raise SiteNotUsable("the appliance names a root that the one believed here does not vouch for")
                _write(self.folder / "root.pem", root.public_bytes(Encoding.PEM))
        own = pem_certificates((self.folder / "own.pem").read_bytes())[0]
        issuer = pem_certificates(told["issuer_pem"].encode())[0]
        if aki_of(own) != ski_of(issuer):  # behind another CA than its own it would lead nowhere
            await self._renew(own)

    def _values(self, told: Mapping[str, Any]) -> RaddbValues:
        """The appliance's values with what is of this machine in place of its own."""
        given = dict(told["values"])
        for name in _FROM_URL:
            if given[name]:
                given[name] = self.site.decision.rstrip("/") + "/" + given[name].partition("://")[2].partition("/")[2]
        radsec = given.pop("radsec")
        if radsec is not None or self.site.radsec_host:
            if radsec is None:
                raise SiteNotUsable("RadSec is off at the appliance (radius.radsec_host)")
            radsec = RadSec(**{**radsec, "address": self.site.radsec_host}) if self.site.radsec_host else None
        libraries = find_libraries()
        own = (self.folder / "own.pem").read_text() + told["issuer_pem"]
        key = (self.folder / "own.key").read_text()
        return RaddbValues(
            **{
                **given,
                "nas": [NasEntry(**one) for one in given["nas"]],
                "radsec": radsec,
                "directory": str(self.folder / RADDB),
                "address": self.site.host,
                "more_addresses": (),
                "port": self.site.port,
                "accounting_port": self.site.accounting_port,
                "library_directory": libraries,
                "limit_proxy_state": knows(find_program(), libraries, "limit_proxy_state"),
                "certificate_chain_pem": own,
                "key_pem": key,
                "client_pem": own,
                "client_key_pem": key,
            }
        )

    async def _successor(self) -> x509.Certificate:
        """The root that the one believed here vouches for, by a link that its key signed (RFC 4210, section 4.4.1)."""
        connection = await open_anchorless(self._est_at, seconds=_SECONDS)
        try:
            reply = await connection.exchange(EstClient().cacerts_call(), seconds=_SECONDS)
        finally:
            await connection.close()
        return EstClient().read_successor(reply, TrustAnchors((self._root(),))).root

    async def _confirmed_root(self) -> x509.Certificate:
        """The root, over a connection that may carry nothing else, believed by its fingerprint (RFC 7030, 4.1.1)."""
        connection = await open_anchorless(self._est_at, seconds=_SECONDS)
        try:
            reply = await connection.exchange(EstClient().cacerts_call(), seconds=_SECONDS)
        finally:
            await connection.close()
        if reply.status != 200:
            raise SiteNotUsable(f"{self.site.url} answered the question for its CA certificates with {reply.status}")
        found = cms.read_certs_only(transfer.read_base64(reply.body))
        for one in found:
            if sha256(one.public_bytes(Encoding.DER)).digest() == self._fingerprint:
                return one
        raise SiteNotUsable(f"no CA certificate of {self.site.url} has the fingerprint that was given")

    async def _get_certificate(
        self, connection: Connection, authorization: str, renewed: x509.Certificate | None = None
    ) -> None:
        client = EstClient(label=_LABEL)
        trust = client.read_cacerts(await connection.exchange(client.cacerts_call(), seconds=_SECONDS))
        key, request = self._staged(renewed)
        if renewed is None:
            call = client.simpleenroll_call(request)
            call = dataclasses.replace(call, headers={**call.headers, "authorization": authorization})
        else:
            call = client.simplereenroll_call(request)
        reply = await connection.exchange(call, seconds=_SECONDS)
        if reply.status != 200:
            said = reply.body[:300].decode("utf-8", "replace")
            raise SiteNotUsable(f"the appliance refused the certificate ({reply.status}): {said}")
        self._adopt(client, reply, key, request, trust)

    def _adopt(
        self, client: EstClient, reply: Any, key: ec.EllipticCurvePrivateKey, request: bytes, trust: CaCertificates
    ) -> None:
        got = client.read_enrolled(reply, key.public_key(), csr_der=request, trust=trust)
        if isinstance(got, Pending):
            raise SiteNotUsable("the appliance wants to be asked again later")
        _write(self.folder / "own.pem.new", got.public_bytes(Encoding.PEM))
        (self.folder / "next.key").replace(self.folder / "own.key")
        self._settle()

    def _settle(self) -> None:
        """Finish a change of key and certificate that a crash cut in two: the key moves first."""
        fresh = self.folder / "own.pem.new"
        if fresh.exists() and not (self.folder / "next.key").exists():
            fresh.replace(self.folder / "own.pem")
        fresh.unlink(missing_ok=True)
        if not (self.folder / "next.key").exists():
            (self.folder / "next.csr").unlink(missing_ok=True)

    def _staged(self, renewed: x509.Certificate | None) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """Key and request, kept before they leave: a lost answer is asked for again with the very same request."""
        key_file, request_file = self.folder / "next.key", self.folder / "next.csr"
        if key_file.exists() and request_file.exists():
            key = load_pem_private_key(key_file.read_bytes(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            return key, request_file.read_bytes()
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([]) if renewed is None else renewed.subject
        request = csr.build(subject=subject, key=key)
        _write(key_file, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        _write(request_file, request)
        return key, request

    def _root(self) -> x509.Certificate:
        try:
            return pem_certificates((self.folder / "root.pem").read_bytes())[0]
        except (OSError, ValueError) as cause:
            raise SiteNotUsable(f"{self.folder} is not enrolled") from cause

    def _client(self) -> ClientFiles:
        return ClientFiles(self.folder / "own.pem", self.folder / "own.key")


def _same(raddb: Path, files: dict[str, str]) -> bool:
    try:
        return read_raddb(raddb) == files
    except OSError:
        return False


def _write(path: Path, body: bytes) -> None:
    """In one step, for the owner only."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(descriptor)
    fresh.replace(path)
