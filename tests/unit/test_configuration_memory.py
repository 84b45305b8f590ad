"""What a manager remembers of the configuration."""

from __future__ import annotations

from scheduler.management.configuration_memory import ConfigurationMemory
from scheduler.management.pools import PoolDocument

GOLD, SILVER = PoolDocument(session_concurrency=1), PoolDocument(session_concurrency=2)


def test_a_server_with_an_older_version_has_lost_what_was_seen_since() -> None:
    """Also a part of it."""
    memory = ConfigurationMemory()
    memory.saw(5, {"gold": GOLD, "silver": SILVER})
    assert memory.missing(0, {}) == {"gold": GOLD, "silver": SILVER}
    assert memory.missing(4, {"gold": GOLD, "silver": GOLD}) == {"silver": SILVER}


def test_a_server_that_has_no_older_version_has_lost_nothing() -> None:
    """Somebody else has configured less meanwhile."""
    memory = ConfigurationMemory()
    memory.saw(5, {"gold": GOLD})
    assert memory.missing(5, {}) == {}
    assert memory.missing(6, {"silver": SILVER}) == {}


def test_what_is_seen_of_a_server_that_has_lost_something_is_not_remembered() -> None:
    """Or whoever stands by would forget before he leads."""
    memory = ConfigurationMemory()
    memory.saw(5, {"gold": GOLD})
    memory.saw(0, {})
    assert memory.missing(0, {}) == {"gold": GOLD}
