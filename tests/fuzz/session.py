"""One run of libFuzzer in this process, which ends with it: atheris leaves by exit, so `tests.fuzz` starts us."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["brski", "est"]):
    from tests.fuzz import targets

RSS_LIMIT_MB = 1024
# libFuzzer's own limit is in whole seconds; ours is checked on every input
TIMEOUT_SECONDS = 5


def fuzz(
    target: targets.Target, folder: Path, keep: Callable[[bytes], None], corpus: Path, limits: Sequence[str]
) -> None:
    """Run until a limit or a finding, which goes to `keep`; `folder` is for seeds and words. Does not return."""
    seeds, words = folder / "seeds", folder / "words"
    seeds.mkdir()
    for seed in target.seeds:
        (seeds / hashlib.sha256(seed).hexdigest()).write_bytes(seed)
    words.write_text("".join('"' + word.replace('"', '\\"') + '"\n' for word in targets.WORDS), encoding="ascii")

    def feed(data: bytes) -> None:
        try:
            targets.check(target, data)
        except Exception:
            keep(data)
            raise

    arguments = [
        sys.argv[0], *limits, f"-max_len={targets.MAX_BYTES}", f"-timeout={TIMEOUT_SECONDS}",
        f"-rss_limit_mb={RSS_LIMIT_MB}", f"-artifact_prefix={folder}/", f"-dict={words}", "-print_final_stats=1",
        "-verbosity=0", str(corpus), str(seeds),
    ]  # fmt: skip
    atheris.Setup(arguments, feed)
    atheris.Fuzz()


def keep_in(crashes: Path, name: str) -> Callable[[bytes], None]:
    """Writes findings below `crashes`, under the name of the target that was hit, so that they are replayed there."""

    def keep(data: bytes) -> None:
        hit = name
        if name == "all" and data:
            hit, data = targets.NAMES[data[0] % len(targets.NAMES)], data[1:]
        (crashes / hit).mkdir(parents=True, exist_ok=True)
        (crashes / hit / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    return keep


def main(name: str, folder: str, crashes: str, corpus: str, *limits: str) -> None:
    target = targets.any_target() if name == "all" else targets.TARGETS[name]
    fuzz(target, Path(folder), keep_in(Path(crashes), name), Path(corpus), limits)


if __name__ == "__main__":
    main(*sys.argv[1:])
