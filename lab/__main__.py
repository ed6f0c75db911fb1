"""`python -m lab`: the rest of the world for demonstrations and tests."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from est.errors import Refusal

if TYPE_CHECKING:
    from brski.masa import MasaPolicy


def main(words: Sequence[str] | None = None) -> int:
    """Dispatch; parts are imported when they are asked for. 0 done, 1 refused or failed, 2 usage."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["demo"]:
        return int(importlib.import_module("lab.demo").main(words[1:]) or 0)
    if words[:1] == ["campus"]:
        return int(importlib.import_module("lab.wired.stay").main(words[1:]) or 0)
    options = _parser().parse_args(words)
    try:
        _run(options)
    except (ValueError, OSError, Refusal) as fault:
        print(f"lab: {fault}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    if options.verb == "factory":
        from lab import factory

        factory.main(options.dir, options.serial, options.masa_url)
    elif options.verb == "masa":
        import asyncio

        from lab import misbehave, mock_masa

        broken = misbehave.read_knobs(word for word in options.broken.split(",") if word)
        how = mock_masa.MasaOptions(
            crls=tuple(options.crl),
            demand_crl=options.demand_crl,
            log_by_url=options.log_by_url,
            is_hasty=options.hasty,
        )
        asyncio.run(mock_masa.serve(options.dir, options.host, options.port, broken, _policy(options), how))
    elif options.verb == "verifier":
        import asyncio

        from appliance.identity.assemble import load_policy
        from lab import verifier

        asyncio.run(verifier.serve(options.dir, options.host, options.port, load_policy(options.policy)))
    elif options.verb == "rogue":
        from lab import rogue

        rogue.main(options.socket, options.trick, options.owner, options.owner_key)
    else:
        from lab import misbehave

        misbehave.main()


def _policy(options: argparse.Namespace) -> MasaPolicy:
    from cryptography import x509

    from brski.dialect import read_dialect
    from brski.masa import MasaPolicy
    from est.chains import TrustAnchors, spki_sha256

    def read(paths: Sequence[Path]) -> list[x509.Certificate]:
        return [one for path in paths for one in x509.load_pem_x509_certificates(path.read_bytes())]

    registrars = read(options.registrars)
    return MasaPolicy(
        override=not options.first_registrar_wins,
        demand_issuer=options.demand_issuer,
        dialect=read_dialect(options.dialect),
        registrar_anchors=TrustAnchors(registrars) if registrars else None,
        forbidden_pins=frozenset(spki_sha256(one) for one in read(options.forbid_pin)),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    make = verbs.add_parser("factory", help="make devices with IDevIDs, and their manufacturer if it is new")
    make.add_argument("--dir", type=Path, required=True, help="folder of the manufacturer", metavar="DIR")
    make.add_argument("--serial", action="append", required=True, help="serial number; may be repeated")
    make.add_argument("--masa-url", default="", metavar="HOST:PORT", help="MASA URI put into the IDevIDs")
    masa = verbs.add_parser("masa", help="run the manufacturer's MASA")
    masa.add_argument("--dir", type=Path, required=True, help="folder of the manufacturer", metavar="DIR")
    masa.add_argument("--host", default="127.0.0.1", help="address to listen on; loopback by default")
    masa.add_argument("--port", type=int, default=0, metavar="PORT", help="0 = pick one and say which")
    masa.add_argument("--break", dest="broken", default="", metavar="KNOB,...", help="see: python -m lab break")
    masa.add_argument("--first-registrar-wins", action="store_true", help="a claimed device cannot be claimed again")
    masa.add_argument("--registrars", type=Path, action="append", default=[], metavar="PEM",
                      help="anchors of registrars that may ask without a nonce; may be repeated")  # fmt: skip
    masa.add_argument("--crl", type=Path, action="append", default=[], metavar="FILE",
                      help="revocation list of a domain, read for every request; may be repeated")  # fmt: skip
    masa.add_argument("--demand-crl", action="store_true", help="a registrar that names a CRL needs one of these")
    masa.add_argument("--forbid-pin", type=Path, action="append", default=[], metavar="PEM",
                      help="certificates that are never pinned, as those of public CAs; may be repeated")  # fmt: skip
    masa.add_argument("--demand-issuer", action="store_true", help="idevid-issuer must be in every request")
    masa.add_argument("--dialect", default="", metavar="SWITCH,...",
                      help="departures from RFC 8995, as the option of a manufacturer has them")  # fmt: skip
    masa.add_argument("--hasty", action="store_true", help="commits outlive a kill, not a power cut; for load tests")
    masa.add_argument("--log-by-url", action="store_true", help="audit logs are offered at unguessable addresses")
    verbs.add_parser("break", help="list the knobs that make the MASA misbehave")
    judge = verbs.add_parser("verifier", help="run a verifier that appraises evidence over HTTPS")
    judge.add_argument("--dir", type=Path, required=True, help="its keys and certificate; made if missing",
                       metavar="DIR")  # fmt: skip
    judge.add_argument("--host", default="127.0.0.1", help="address to listen on; loopback by default")
    judge.add_argument("--port", type=int, default=0, metavar="PORT", help="0 = pick one and say which")
    judge.add_argument("--policy", type=Path, metavar="FILE", help="appraisal policy; the built-in one without")
    rogue = verbs.add_parser("rogue", help="an agent that cheats at the Agent API")
    rogue.add_argument("--socket", type=Path, required=True)
    rogue.add_argument("--trick", choices=("self-approval", "approval-for-other-key", "approval-replay"), required=True)
    rogue.add_argument("--owner", required=True, help="identifier of the owner")
    rogue.add_argument("--owner-key", type=Path, required=True, help="the owner's key, for approvals really given")
    verbs.add_parser("demo", help="the whole story; see its own --help", add_help=False)
    verbs.add_parser("campus", help="a wired campus that stays; see its own --help", add_help=False)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
