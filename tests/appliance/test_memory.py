"""Memory that was used once is given back."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STORY = """
from pathlib import Path
from appliance.memory import give_back
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
give_back()
before = resident()
for _ in range(3):
    block = b"x" * 30_000_000
    del block
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_large_block_that_was_freed_is_not_kept() -> None:
    done = subprocess.run([sys.executable, "-c", STORY], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 5_000_000
    kept = STORY.replace("\ngive_back()", "")
    done = subprocess.run([sys.executable, "-c", kept], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) > 20_000_000, "the allocator gives it back by itself now: this module is not needed"
