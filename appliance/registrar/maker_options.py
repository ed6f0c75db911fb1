"""What can be set for one manufacturer beside its anchors, with default and meaning; kept as JSON in its row.

The manual's table and the command line's OPTION=VALUE both come from this model. Values are checked when they are set.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from appliance.registrar.errors import ManufacturerUnusable
from appliance.registrar.masa_credentials import MasaCredentials
from appliance.setting_types import DomainId
from brski.dialect import read_dialect
from brski.errors import DialectUnknown
from brski.idevid import SerialSource, read_masa_address

Admission = Literal["", "automatic", "listed", "manual"]
MasaTrust = Literal["anchors", "machine", "both"]


class Options(BaseModel):
    """The options of one manufacturer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    admission: Admission = Field(
        "", description="Who of its devices is admitted: automatic, listed, manual; empty = `registrar.admission`."
    )
    ignore_expiry: bool = Field(False, description="Take IDevIDs outside their dates (RFC 8995, section 2.6.2).")
    serial_source: Literal["subject-serial-number", "hardware-module-name", "common-name"] = Field(
        "subject-serial-number",
        description="Where its IDevIDs hold the serial number: subject-serial-number, hardware-module-name (in the "
        "subjectAltName), common-name.",
    )
    dialect: str = Field("", description="Departures from RFC 8995 that are tolerated, with commas; empty = none.")
    masa_from: Literal["idevid", "configured"] = Field(
        "idevid",
        description="Which MASA is asked: that of the IDevID if it is allowed, or always the configured one.",
    )
    masas: tuple[str, ...] = Field((), description="Further MASAs, host:port, that an IDevID may name.")
    masa_addresses: tuple[str, ...] = Field(
        (), description="Private or loopback addresses that the MASA's name may lead to; link-local ones never pass."
    )
    masa_trust: MasaTrust = Field(
        "anchors",
        description="What the MASA's TLS certificate must lead to: its own anchors (`--masa-anchors`), the machine's "
        "trust store, or either of both.",
    )
    masa_client_certificate: str = Field("", description="Client certificate for this MASA alone, PEM file.")
    masa_client_key: str = Field("", description="Its key, unencrypted PEM file of mode 0600.")
    masa_basic_file: str = Field("", description="File of mode 0600 with NAME:SECRET for HTTP Basic at this MASA.")
    masa_concurrency: int = Field(
        0, ge=0, le=1024, description="Calls under way to its MASA at once; 0 = `registrar.masa_concurrency`."
    )
    requests_per_second: float = Field(
        0, ge=0, description="New voucher-requests of all its devices together; 0 = `registrar.maker_rate`."
    )
    known_domains: tuple[DomainId, ...] = Field(
        (), description="domainIDs, base64, whose entries in its devices' histories are in order (a reseller)."
    )

    @field_validator("dialect")
    @classmethod
    def _dialect_is_known(cls, text: str) -> str:
        try:
            read_dialect(text)
        except DialectUnknown as cause:
            raise ValueError(cause.detail) from cause
        return text

    def as_json(self) -> dict[str, Any]:
        """As it is kept and shown."""
        return self.model_dump(mode="json")

    @property
    def credentials(self) -> MasaCredentials:
        """What we show its MASA."""
        return MasaCredentials(self.masa_client_certificate, self.masa_client_key, self.masa_basic_file)

    @property
    def source(self) -> SerialSource:
        """Where the serial number stands."""
        return SerialSource(self.serial_source)

    @property
    def domains(self) -> frozenset[bytes]:
        """The known domains as octets."""
        return frozenset(map(base64.b64decode, self.known_domains))


def read_options(members: Mapping[str, Any]) -> Options:
    """The options in JSON members; raises ManufacturerUnusable naming the option."""
    try:
        options = Options.model_validate(dict(members))
    except ValidationError as cause:
        first = cause.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "options"
        said = "there is no such option" if first["type"] == "extra_forbidden" else first["msg"]
        raise ManufacturerUnusable(f"{name.replace('_', '-')[:60]}: {said}") from cause
    for text in options.masas:
        read_masa_address(text)
    return options


def read_assignments(assignments: Mapping[str, str]) -> dict[str, Any]:
    """Members of Options from what a command line says, `masa-trust` to `machine`; lists have commas."""
    found: dict[str, Any] = {}
    for dashed, text in assignments.items():
        name = dashed.replace("-", "_")
        info = Options.model_fields.get(name)
        is_list = info is not None and isinstance(info.default, tuple)
        found[name] = [part.strip() for part in text.split(",") if part.strip()] if is_list else text
    return found
