"""Somebody deletes a key while the fleet runs: what may be lost by that, and for how long what is not may be wrong.

Where a key holds jobs, those are exempt: an intake, the parked bodies, an inbox, a record. All others must end, and be
told, as if nothing had happened, after a moment in which the key is made again.
"""

from __future__ import annotations

from typing import Final

from scheduler.protocol import keys
from scheduler.protocol.lifecycle import TERMINAL
from tests.simulation.checker import Checker
from tests.simulation.fleet import SETTINGS
from tests.simulation.rest import RestChecker
from tests.simulation.server import Server

CONTROL: Final = frozenset(
    ("leader", "snapshot", "version", "deltas", "layout", "config", "heartbeats", "commands", "answers", "dispatchers")
)
AGAIN_S: Final = 2.0  # in which a key is made again that somebody sees the lack of
LEASE_S: Final = SETTINGS.lease_ms / 1000
_CELL: Final = keys.CellKeys(SETTINGS.namespace)
_CONTROL: Final = keys.ControlKeys(SETTINGS.namespace)


def delete(what: str, server: Server, checker: Checker, rest: RestChecker) -> None:
    """Delete a key that a schedule names, see `DELETED` in plan.py."""
    rest.trouble(AGAIN_S)
    names, exempt = _names(what, server, checker), _held_by(what, checker)
    if not names:
        return
    for job_id in exempt:
        checker.exempt.add(job_id)
    server.ask("DEL", *names)
    checker.forgotten(names)
    if what in ("held", "config"):
        checker.unlimited_until_s = checker.world.now_s + AGAIN_S
    if what.startswith("slots:"):
        rest.trouble(LEASE_S)


def _names(what: str, server: Server, checker: Checker) -> list[str]:
    """The keys that are there."""
    if what in CONTROL:
        names = [getattr(_CONTROL, what)]
    elif what == "held":
        names = [name.decode() for name in server.ask("KEYS", _CELL.held("*", "*"))]
    elif what == "job":
        names = [_CELL.job(job_id) for job_id in _first_live(checker)]
    else:
        kind, _, name = what.partition(":")
        made = getattr(_CELL, kind)
        names = [made(int(name) if kind == "jobs" else name) if name else made]
    return sorted(name for name in names if server.ask("EXISTS", name))


def _first_live(checker: Checker) -> list[str]:
    """The first job whose record is there and has not ended."""
    live = (job_id for job_id, each in sorted(checker.records.items()) if each["state"] not in (*TERMINAL, "none"))
    return list(live)[:1]


def _held_by(what: str, checker: Checker) -> set[str]:
    """The jobs whose bodies or records go with a key."""
    records = checker.records
    kind, _, name = what.partition(":")
    if kind == "job":
        return set(_first_live(checker))
    if kind == "jobs":
        return {entry.job_id for entry in checker.intake(int(name))}
    if kind == "parked":
        return {job_id for job_id, each in records.items() if each["state"] == "delayed"}
    if kind == "inbox":
        return {job_id for job_id, each in records.items() if each["state"] == "reserved" and each.get("node") == name}
    return set()
