"""`python -m tests.fuzz TARGET --seconds 600`: fuzz one target, `radius` or `all` of them, with atheris (extra `fuzz`).

What it finds is kept in tests/fuzz/crashes/TARGET, from where the ordinary tests replay it: commit the file with the
mend. `--corpus DIR` keeps interesting inputs for the next run; `--units FILE` says as JSON how many inputs each target
has had. Exit status 0: nothing was found.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

CRASHES = Path(__file__).parent / "crashes"
TARGETS = (
    "content", "cms", "cms-dialect", "jws", "jws-header", "pledge-request", "registrar-request", "voucher",
    "tokens", "claims", "bodies", "extension", "csr", "csr-info", "http-signature", "bundle",
    "radius-datagram", "radius-packet", "radius-fragments", "radius-damage", "radius-tunnel", "radius-accounting",
    "radius-coa", "radius-hook", "http-requests", "radius", "all",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60, help="stop after this long")
    parser.add_argument("--runs", type=int, default=-1, help="stop after this many inputs")
    parser.add_argument("--seed", type=int, default=0, help="of the random generator; 0 = another one each time")
    parser.add_argument("--corpus", type=Path, help="folder of inputs that is read and extended")
    parser.add_argument("--crashes", type=Path, default=CRASHES, help="where findings are kept")
    parser.add_argument("--units", type=Path, metavar="FILE", help="write how many inputs each target has had")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        corpus = options.corpus or Path(name) / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        limits = [f"-max_total_time={options.seconds}", f"-runs={options.runs}", f"-seed={options.seed}"]
        command = [sys.executable, "-m", "tests.fuzz.session", options.target, name, options.crashes, corpus, *limits]
        status = subprocess.run([str(part) for part in command], check=False).returncode
        if options.units is not None and (Path(name) / "units").exists():
            counts = [count for (count,) in struct.iter_unpack("=Q", (Path(name) / "units").read_bytes())]
            options.units.write_text(json.dumps(dict(zip(_members(options.target), counts, strict=True))) + "\n")
        return status


def _members(target: str) -> tuple[str, ...]:
    """The targets that are fuzzed under this name, in the order of their counts."""
    if target not in ("radius", "all"):
        return (target,)
    return tuple(name for name in TARGETS[:-2] if target == "all" or name.startswith("radius-"))


if __name__ == "__main__":
    sys.exit(main())
