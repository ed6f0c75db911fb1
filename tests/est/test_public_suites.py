"""Validation held to public suites: NIST PKITS, and the odd certificates and requests of `cryptography-vectors`.

Where our verdict is not the suite's, the case stands with its reason in `pkits_deviations.csv`; every odd file stands
with its verdict in `odd_files.csv`. Both tables were reviewed row by row: a new deviation, a changed verdict, a new
file and a row without a case all fail here.
"""

from __future__ import annotations

import base64
import csv
import re
import warnings
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import cryptography_vectors
import pytest
from cryptography import x509

from est import chains
from est import csr as requests
from est.certificates import read_certificate
from est.errors import EstError

SUITE = Path(cryptography_vectors.__file__).parent / "x509"
PKITS = SUITE / "PKITS_data" / "certs"
HERE = Path(__file__).parent
AT = datetime(2026, 1, 1, tzinfo=UTC)
_PEM = re.compile(rb"-----BEGIN (?:X509 )?(?:NEW )?(?:TRUSTED )?[A-Z0-9 ]+-----(.*?)-----END", re.DOTALL)
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


def _table(name: str) -> dict[str, dict[str, str]]:
    with (HERE / name).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert len({row["case"] for row in rows}) == len(rows)
    assert all(row["why"] for row in rows)
    return {row["case"]: row for row in rows}


PKITS_CASES = sorted(file.stem for file in PKITS.glob("*EE.crt"))
ODD_FILES = sorted(
    f"{file.parent.name}/{file.name}" if file.parent != SUITE else file.name
    for folder in ("", "custom", "requests", "ed25519", "ed448")
    for file in (SUITE / folder).iterdir()
    if file.suffix in (".pem", ".der") and "crl" not in file.name
)


@cache
def _authorities() -> tuple[x509.Certificate, tuple[x509.Certificate, ...]]:
    """The trust anchor of the suite and every CA certificate that we read."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in sorted(PKITS.glob("*.crt")):
            if not file.stem.endswith("EE"):
                try:
                    found.append(read_certificate(file.read_bytes()))
                except EstError:
                    continue
    (anchor,) = (one for one in found if one.subject == one.issuer and "Trust Anchor" in one.subject.rfc4514_string())
    return anchor, tuple(one for one in found if one != anchor)


def _above(leaf: x509.Certificate) -> list[x509.Certificate]:
    """Every certificate of the suite that stands above this one by name."""
    _, authorities = _authorities()
    found: list[x509.Certificate] = []
    names = [leaf.issuer]
    while names:
        name = names.pop()
        more = [one for one in authorities if one.subject == name and one not in found]
        found += more
        names += [one.issuer for one in more]
    return found


def _verdict_of_path(der: bytes) -> str:
    try:
        leaf = read_certificate(der)
        anchors = chains.TrustAnchors((_authorities()[0],))
        chains.check(leaf, _above(leaf), anchors, at=AT, policy=chains.IDEVID)
    except EstError as refusal:
        return refusal.reason
    return "ok"


@pytest.mark.req("E-30", "E-41")
@pytest.mark.parametrize("case", PKITS_CASES)
def test_paths_are_judged_as_pkits_says_but_for_the_reviewed_deviations(case: str) -> None:
    verdict = _verdict_of_path((PKITS / f"{case}.crt").read_bytes())
    expected = "ok" if not case.startswith("Invalid") else "refused"
    deviation = _table("pkits_deviations.csv").get(case)
    if deviation is not None:
        assert verdict == deviation["verdict"], deviation["why"]
        assert (verdict == "ok") != (expected == "ok"), "the deviation is gone: take its row out"
    else:
        assert (verdict == "ok") == (expected == "ok"), f"new deviation: {verdict}"


def test_no_deviation_lets_somebody_in_but_for_revocation() -> None:
    table = _table("pkits_deviations.csv")
    assert set(table) <= set(PKITS_CASES)
    accepted = {case for case, row in table.items() if row["verdict"] == "ok"}
    assert all(table[case]["why"].startswith("revocation") for case in accepted)


def _der(file: Path) -> bytes:
    data = file.read_bytes()
    found = _PEM.search(data) if b"-----BEGIN" in data else None
    if found is None:
        return data
    return base64.b64decode(b"".join(line for line in found[1].splitlines() if b":" not in line))


def _verdict_of_odd(name: str) -> str:
    der = _der(SUITE / name)
    try:
        if name.startswith("requests/"):
            requests.read(der)
        else:
            chains.check_end_entity(read_certificate(der), chains.IDEVID)
    except EstError as refusal:
        return refusal.reason
    return "ok"


@pytest.mark.req("E-200", "E-70", "E-204")
@pytest.mark.parametrize("name", ODD_FILES)
def test_odd_certificates_and_requests_get_their_reviewed_verdict(name: str) -> None:
    row = _table("odd_files.csv").get(name)
    assert row is not None, f"a new file of the suite, judged {_verdict_of_odd(name)}: review it and add its row"
    assert _verdict_of_odd(name) == row["verdict"], row["why"]


def test_every_reviewed_file_is_there() -> None:
    assert set(_table("odd_files.csv")) == set(ODD_FILES)
