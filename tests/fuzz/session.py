"""One run of libFuzzer in this process, which ends with it: atheris leaves by exit, so `tests.fuzz` starts us."""

from __future__ import annotations

import hashlib
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["brski", "est", "radius", "appliance.binding"]):
    from tests.fuzz import targets

RSS_LIMIT_MB = 1024
# libFuzzer's own limit is in whole seconds; ours is checked on every input
TIMEOUT_SECONDS = 5


def fuzz(
    name: str, target: targets.Target | None, folder: Path, crashes: Path, corpus: Path, limits: Sequence[str]
) -> None:
    """Run until a limit or a finding, which is kept below `crashes`. Does not return.

    `target` None: `name` is a group of them, and the first byte of an input chooses. `folder` is for seeds, words and
    the count of inputs that each target has had.
    """
    seeds, words = folder / "seeds", folder / "words"
    seeds.mkdir()
    for seed in targets.seeds_of(name) if target is None else target.seeds:
        (seeds / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    words.write_text("".join('"' + word.replace('"', '\\"') + '"\n' for word in targets.WORDS), encoding="ascii")

    names = targets.GROUPS[name] if target is None else (name,)
    units = _counters(folder / "units", names)

    def feed(data: bytes) -> None:
        hit, chosen = name, target
        if chosen is None:
            if not data:
                return
            hit, data = targets.by_first_byte(data, name)
            chosen = targets.TARGETS[hit]
        units[names.index(hit)] += 1
        try:
            targets.check(chosen, data)
        except Exception:
            (crashes / hit).mkdir(parents=True, exist_ok=True)
            (crashes / hit / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
            raise

    arguments = [
        sys.argv[0], *limits, f"-max_len={targets.MAX_BYTES}", f"-timeout={TIMEOUT_SECONDS}",
        f"-rss_limit_mb={RSS_LIMIT_MB}", f"-artifact_prefix={folder}/", f"-dict={words}", "-print_final_stats=1",
        "-verbosity=0", str(corpus), str(seeds),
    ]  # fmt: skip
    atheris.Setup(arguments, feed)
    atheris.Fuzz()


def _counters(file: Path, names: Sequence[str]) -> memoryview:
    """A count for each target, in a file that outlives this process: libFuzzer ends it without a word to Python."""
    file.write_bytes(bytes(8 * len(names)))
    with file.open("r+b") as stream:
        return memoryview(mmap.mmap(stream.fileno(), 0)).cast("Q")


def main(name: str, folder: str, crashes: str, corpus: str, *limits: str) -> None:
    fuzz(name, targets.TARGETS.get(name), Path(folder), Path(crashes), Path(corpus), limits)


if __name__ == "__main__":
    main(*sys.argv[1:])
