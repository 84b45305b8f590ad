"""Log lines of the commands, beside what a module of the user configures."""

from __future__ import annotations

import logging
import logging.config
import re
from collections.abc import Iterator
from datetime import datetime

import pytest

from scheduler.console.logs import configurable_by_import, log_to_stderr

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """No handler but those of the test, and everything as before afterwards."""
    root = logging.getLogger()
    names = ("scheduler", "scheduler.node", "theirs", "theirs.part")
    before = (root.handlers[:], root.level, [(name, logging.getLogger(name).level) for name in names])
    others = [each for each in logging.root.manager.loggerDict.values() if isinstance(each, logging.Logger)]
    enabled = [each for each in others if not each.disabled]
    yield
    for logger in enabled:  # dictConfig switches off those of other tests too
        logger.disabled = False
    root.handlers[:], root.level = before[0], before[1]
    for name, level in before[2]:
        logger = logging.getLogger(name)
        logger.handlers[:], logger.level, logger.disabled, logger.propagate = [], level, False, True
    root.setLevel(before[1])


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What was logged, without times."""
    return [re.sub(f"^{STAMP} ", "", line) for line in capsys.readouterr().err.splitlines()]


def begin() -> None:
    """Log as a command does, where nobody else does: pytest has handlers of its own."""
    logging.getLogger().handlers[:] = []
    log_to_stderr("info")


def log_something() -> None:
    """A line of a handler's module and one of ours."""
    logging.getLogger("theirs.part").info("x")
    logging.getLogger("scheduler.node").info("y")


def test_the_level_is_that_of_everybody(capsys: pytest.CaptureFixture[str]) -> None:
    """A time has its offset to UTC."""
    begin()
    log_something()
    logging.getLogger("theirs").debug("not")
    told = capsys.readouterr().err.splitlines()
    assert [re.fullmatch(f"({STAMP}) INFO (.*)", line)[2] for line in told] == ["theirs.part: x", "scheduler.node: y"]  # type: ignore[index]
    assert abs(datetime.fromisoformat(told[0].split()[0]).timestamp() - datetime.now().timestamp()) < 60


def test_no_line_can_be_forged(capsys: pytest.CaptureFixture[str]) -> None:
    """Not by a message, nor by the text of an error; secrets of URLs are hidden."""
    begin()
    try:
        raise ValueError("\x1b[2J\n2026-01-01 INFO forged")
    except ValueError:
        logging.getLogger("theirs").exception("a\nb %s", "redis://u:secret@host")
    told = lines(capsys)
    assert told[0] == r"ERROR theirs: a\nb redis://***@host"
    assert told[-2:] == [r"  ValueError: \x1b[2J", "  2026-01-01 INFO forged"]
    assert all(line.startswith("  ") for line in told[1:])


def test_basic_config_is_respected(capsys: pytest.CaptureFixture[str]) -> None:
    """Its format and level hold for both; ours is gone."""
    begin()
    with configurable_by_import():
        logging.basicConfig(level="DEBUG", format="MINE %(name)s %(message)s")
    log_something()
    logging.getLogger("theirs").debug("z")
    assert lines(capsys) == ["MINE theirs.part x", "MINE scheduler.node y", "MINE theirs z"]


def test_dict_config_does_not_silence_us(capsys: pytest.CaptureFixture[str]) -> None:
    """By default it switches off loggers that it does not name."""
    begin()
    with configurable_by_import():
        logging.config.dictConfig(
            {
                "version": 1,
                "formatters": {"f": {"format": "MINE %(name)s %(message)s"}},
                "handlers": {"h": {"class": "logging.StreamHandler", "formatter": "f"}},
                "root": {"handlers": ["h"], "level": "INFO"},
            }
        )
    logging.getLogger("scheduler.node").info("y")
    assert lines(capsys) == ["MINE scheduler.node y"]


def test_a_handler_of_a_logger_of_theirs_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    """Our own lines go on as before."""
    begin()
    with configurable_by_import():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("MINE %(message)s"))
        logging.getLogger("theirs").addHandler(handler)
        logging.getLogger("theirs.part").addHandler(logging.NullHandler())
    log_something()
    assert lines(capsys) == ["MINE x", "INFO scheduler.node: y"]


def test_a_line_at_import_configures_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """`logging.warning` calls basicConfig by itself; what is logged during the import is told in our way as well."""
    begin()
    with configurable_by_import():
        logging.getLogger("theirs").info("loading")
        logging.warning("loaded")
    log_something()
    assert lines(capsys) == [
        "INFO theirs: loading",
        "WARNING:root:loaded",
        "INFO theirs.part: x",
        "INFO scheduler.node: y",
    ]


def test_a_module_that_fails_leaves_all_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    """The error can be logged."""
    begin()
    with pytest.raises(ImportError), configurable_by_import():
        raise ImportError
    log_something()
    assert lines(capsys) == ["INFO theirs.part: x", "INFO scheduler.node: y"]
