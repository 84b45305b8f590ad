"""Every key, stream, group and field name of the server: nobody else glues a key.

Two kinds of hash tag: `{sched}` holds the control plane, `{sched:<cell>}` everything of one cell, so that each script
touches one slot of a Cluster. `sched` is the namespace and can be changed. `docs/ARCHITECTURE.md` says who
writes what.
"""

from __future__ import annotations

import re
import zlib
from typing import NewType

from scheduler.errors import InvalidInput

JobId = NewType("JobId", str)
SessionId = NewType("SessionId", str)
NodeId = NewType("NodeId", str)

PROTOCOL = 6
MANAGEMENT_GROUP = "management"
HIGHEST_ID = "18446744073709551615-18446744073709551615"
"""Of a stream: one that has used it takes no entry any more."""
AHEAD_MS_MAX = 86_400_000
"""An id further ahead of the server's clock is absurd; those below go on, and harm nothing."""
LEADER_CONSUMER = "leader"

ID_LENGTH_MAX = 128
NAME_LENGTH_MAX = 64
GENERATED_PREFIX = "~"
_VISIBLE = re.compile(r"[!-z|~]+")  # visible ASCII without braces; a space is not visible


def check_id(what: str, value: object, length_max: int = ID_LENGTH_MAX) -> str:
    """Return `value` if it can stand in a key.

    Args: what, the field's name for the message; value; length_max, in characters.
    Raises: InvalidInput.
    """
    if isinstance(value, str) and 1 <= len(value) <= length_max and _VISIBLE.fullmatch(value):
        return value
    shown = value if not isinstance(value, str) or len(value) <= 40 else value[:40] + "..."
    raise InvalidInput(
        f"{what} = {shown!r}: expected 1 to {length_max} visible ASCII characters without spaces and braces"
    )


def check_name(what: str, value: object) -> str:
    """As check_id, for names of nodes, tenants, pools and reply streams (64 characters)."""
    return check_id(what, value, NAME_LENGTH_MAX)


def partition_of(session_id: str, partitions: int, cells: int = 1) -> int:
    """The partition of a session: c + C * ((crc32 div C) mod (P / C)), which is crc32 % P for one cell.

    Args: session_id; partitions P; cells C, which divides P.
    """
    checksum = zlib.crc32(session_id.encode())
    cell = checksum % cells
    return cell + cells * ((checksum // cells) % (partitions // cells))


def cell_of(partition: int, cells: int = 1) -> int:
    """The cell that a partition lives in."""
    return partition % cells


def partition_of_entry(entry: str) -> int:
    """The partition of an intake entry that is named `<partition>/<entry id>`. Raises: ValueError."""
    return int(entry.partition("/")[0])


def generated_job_id(cell: int, partition: int, entry_id: str) -> JobId:
    """The id of a job whose document names none: unique, and reserved by its first character."""
    return JobId(f"{GENERATED_PREFIX}{cell}-{partition}-{entry_id}")


def is_absurd(entry_id: str, now_ms: int) -> bool:
    """Whether an entry's id is one that no clock gives; also of the last id of a stream, "" where there is none."""
    return bool(entry_id) and int(entry_id.partition("-")[0]) > now_ms + AHEAD_MS_MAX


class ControlKeys:
    """Keys of the control plane, tag `{sched}`."""

    def __init__(self, namespace: str = "sched") -> None:
        check_name("namespace", namespace)
        tag = f"{{{namespace}}}"
        self.layout = f"{tag}:layout"
        self.heartbeats = f"{tag}:heartbeats"
        self.commands = f"{tag}:commands"
        self.answers = f"{tag}:answers"
        self.config = f"{tag}:config"
        self.snapshot = f"{tag}:snapshot"
        self.version = f"{tag}:version"
        self.deltas = f"{tag}:deltas"
        self.leader = f"{tag}:leader"
        self.dispatchers = f"{tag}:dispatchers"


class CellKeys:
    """Keys of one cell, tag `{sched:<cell>}`."""

    def __init__(self, namespace: str = "sched", cell: int = 0) -> None:
        check_name("namespace", namespace)
        self.cell = cell
        self._tag = f"{{{namespace}:{cell}}}"
        self.partitions = f"{self._tag}:partitions"
        self.owners = f"{self._tag}:owners"
        self.capacity = f"{self._tag}:capacity"
        self.control_ids = f"{self._tag}:control_ids"
        self.leader_epoch = f"{self._tag}:leader_epoch"
        self.last_boot = f"{self._tag}:last_boot"
        self.open = f"{self._tag}:open"
        self.counted = f"{self._tag}:counted"
        self.freed = f"{self._tag}:freed"
        self.results = f"{self._tag}:results"
        self.delayed = f"{self._tag}:delayed"
        self.parked = f"{self._tag}:parked"
        self.dead = f"{self._tag}:dead"

    def jobs(self, partition: int) -> str:
        """Intake stream of a partition."""
        return f"{self._tag}:jobs:{partition}"

    def slots(self, node: str) -> str:
        """Live reservations of a node: job_id -> lease deadline (ms)."""
        return f"{self._tag}:slots:{node}"

    def inbox(self, node: str) -> str:
        """A node's stream of assignments and control messages."""
        return f"{self._tag}:inbox:{node}"

    def left(self, node: str) -> str:
        """The boot of a node that left last, for a while."""
        return f"{self._tag}:left:{node}"

    def job(self, job_id: str) -> str:
        """The job record."""
        return f"{self._tag}:job:{job_id}"

    def result(self, job_id: str) -> str:
        """What the handler returned."""
        return f"{self._tag}:result:{job_id}"

    def detail(self, job_id: str) -> str:
        """What is known of the last failed attempt."""
        return f"{self._tag}:detail:{job_id}"

    def session(self, session_id: str) -> str:
        """A session's binding."""
        return f"{self._tag}:session:{session_id}"

    def held(self, kind: str, name: str) -> str:
        """Job ids that count against a limit; kind: tenant or session."""
        return f"{self._tag}:held:{kind}:{name}"

    def rebuilt(self, stream: str) -> str:
        """The copy that is to take the place of one of the streams above; stream: without its tag."""
        return f"{self._tag}:rebuilt:{stream.removeprefix(f'{self._tag}:')}"

    def renamed(self, stream: str) -> str:
        """What has other ids in that copy."""
        return f"{self._tag}:renamed:{stream.removeprefix(f'{self._tag}:')}"

    def replies(self, reply_to: str) -> str:
        """The results stream that a producer asked for; the common one when it asked for none."""
        return f"{self.results}:{reply_to}" if reply_to else self.results
