"""`python -m lab campus`: the wired campus, with its proxy and agents logged in, until it is interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lab import demo
from lab.story import Story, find
from lab.wired import campus
from lab.wired.stage import WiredStage
from lab.wired.story import WiredStory


class Staying(WiredStory):
    """The first half of the story: everybody is where they belong."""

    def tell(self) -> None:
        self.stage.stand_up()
        self.look_at_closed_ports()
        self.take_in_the_proxy()
        self.give_agents_their_credentials()
        self.log_in()


def main(words: Sequence[str]) -> int:
    """0 when it stood until it was interrupted, 1 when it could not stand up."""
    parser = argparse.ArgumentParser(prog="python -m lab campus", description=__doc__)
    parser.add_argument("--radius", choices=("embedded", "freeradius"), help="default: freeradius where installed")
    parser.add_argument("--out", type=Path, help="folder for everything (default: a new one under lab-output)")
    options = parser.parse_args(words)
    if reason := campus.why_not():
        print(f"lab: {reason}", file=sys.stderr)
        return 1
    try:
        out = demo.new_folder(options.out)
    except OSError as refused:
        print(f"lab: {refused.filename}: {refused.strerror}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, demo.interrupt)
    engine = options.radius or ("freeradius" if find("freeradius") else "embedded")
    return demo.play(Staying(WiredStage(out, engine, Story())), None, keep=True)
