"""Log lines: one each, for people or programs, with nothing that a terminal obeys."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from appliance.log import set_up_logging
from appliance.settings import LogSettings

HOSTILE = "a\nevent=ready\r\x1b[31m\x00\u2028b\u202ec\x9b"


@pytest.fixture(autouse=True)
def root_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_is_one_line_whatever_is_in_it(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogSettings())
    logging.getLogger("appliance.x").warning("user=%s", HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logging.getLogger("appliance.x").exception("event=failed")
    lines = capfd.readouterr().err.split("\n")
    assert len(lines) == 3 and lines[2] == ""
    assert all(character.isprintable() for line in lines for character in line)
    assert " warning appliance.x user=a?event=ready" in lines[0] and "ValueError" in lines[1]
    assert lines[0][:5].rstrip("-").isdigit() and lines[0].split()[0].endswith("Z")


def test_json_is_one_object_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogSettings(format="json"))
    logging.getLogger("appliance.x").info("user=%s", HOSTILE)
    (line,) = capfd.readouterr().err.splitlines()
    assert json.loads(line)["message"] == f"user={HOSTILE}"
    assert all(character.isprintable() for character in line)


def test_the_level_is_the_settings_and_libraries_say_less(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogSettings(level="error"))
    logging.getLogger("appliance").warning("not this")
    set_up_logging(LogSettings(level="debug"))
    logging.getLogger("asyncio").info("nor this")
    logging.getLogger("appliance").debug("this")
    assert "not this" not in (said := capfd.readouterr().err) and "nor this" not in said and "this" in said
    assert len(logging.getLogger().handlers) == 1, "once more is not twice"
