"""The manufacturer: devices as other makers' programs see them, files as their owner keeps them."""

from __future__ import annotations

import json
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from brski import Pledge
from brski.idevid import read_idevid
from est import chains
from lab import factory
from lab.__main__ import main
from tests.support import NOW

MASA = "127.0.0.1:9443"


@pytest.mark.req("B-151", "B-154", "B-159")
def test_device_carries_serial_masa_and_no_expiry() -> None:
    maker = factory.Factory.create(now=NOW)
    device = maker.make_device("PX-1", masa=MASA, now=NOW)
    idevid = read_idevid(device.certificate)
    assert (idevid.serial_number, idevid.masa_uri) == ("PX-1", MASA)
    assert device.certificate.not_valid_after_utc.year == 9999
    assert chains.check(device.certificate, device.issuers, maker.device_anchors, at=NOW, policy=chains.IDEVID)


@pytest.mark.req("B-321")
def test_devices_do_not_chain_to_the_voucher_root_nor_vouchers_to_the_device_root() -> None:
    maker = factory.Factory.create(now=NOW)
    device = maker.make_device("PX-1", now=NOW)
    for identity, anchors in ((device, maker.masa_anchors), (maker.masa, maker.device_anchors)):
        with pytest.raises(chains.ChainNotTrusted):
            chains.check(identity.certificate, identity.issuers, anchors, at=NOW, policy=chains.IDEVID)


def test_folder_is_written_for_its_owner_only_and_read_back(tmp_path: Path) -> None:
    made = factory.load_or_create(tmp_path / "acme", now=NOW)
    device = made.make_device("PX-1", masa=MASA, now=NOW)
    home = factory.save_device(made, tmp_path / "acme", "PX-1", device)
    again = factory.load_or_create(tmp_path / "acme", now=NOW)
    assert again.masa.chain == made.masa.chain
    assert again.device_ca.key.private_numbers() == made.device_ca.key.private_numbers()
    assert factory.load_identity(home, "idevid").chain == device.chain
    assert sorted(path.name for path in home.iterdir()) == ["idevid.key.pem", "idevid.pem", "masa-anchors.pem"]
    for path in (tmp_path / "acme").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("serial", ["", "../x", "a/b", ".hidden", "a b", "x" * 65, "ü"])
def test_serials_that_are_no_file_names_are_refused(serial: str) -> None:
    with pytest.raises(ValueError):
        factory.Factory.create(now=NOW).make_device(serial, now=NOW)


def test_command_makes_devices_and_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["factory", "--dir", str(tmp_path / "acme"), "--serial", "PX-1", "--masa-url", MASA]
    assert main(words) == 0
    (line,) = capsys.readouterr().out.splitlines()
    said = json.loads(line)
    assert said["serial"] == "PX-1" and said["masa_url"] == MASA
    home = Path(said["folder"])
    identity = factory.load_identity(home, "idevid")
    anchors = chains.TrustAnchors(x509.load_pem_x509_certificates(Path(said["masa_anchors"]).read_bytes()))
    assert Pledge(identity.signer, identity.chain, anchors).idevid.serial_number == "PX-1"
    assert main(words) == 1  # a device is not made twice
    assert "PX-1" in capsys.readouterr().err
    assert main([*words[:4], "PX-2", "--serial", "PX-3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_command_refuses_a_masa_address_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["factory", "--dir", str(tmp_path), "--serial", "PX-1", "--masa-url", "http://x/"]) == 1
    assert "https" in capsys.readouterr().err


@pytest.mark.interop
@pytest.mark.req("B-154", "B-159")
def test_openssl_reads_the_device(tmp_path: Path) -> None:
    made = factory.load_or_create(tmp_path, now=NOW)
    home = factory.save_device(made, tmp_path, "PX-1", made.make_device("PX-1", masa=MASA, now=NOW))
    try:
        verify = subprocess.run(
            ["openssl", "verify", "-attime", "1767268800", "-CAfile", tmp_path / "manufacturer" / "ca.pem",
             "-untrusted", home / "idevid.pem", home / "idevid.pem"],
            capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        text = subprocess.run(
            ["openssl", "x509", "-noout", "-text", "-in", home / "idevid.pem"],
            capture_output=True,
            text=True,
            timeout=240,
        ).stdout
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    assert verify.returncode == 0, verify.stderr
    assert "serialNumber = PX-1" in text or "serialNumber=PX-1" in text
    assert "1.3.6.1.5.5.7.1.32" in text
    assert "Dec 31 23:59:59 9999 GMT" in text
