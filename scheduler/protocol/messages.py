"""What the scripts are asked and what they answer, as frozen values: an expected outcome is a value, never an error.

store/ turns these into KEYS and ARGV and back; nobody else sees a script's words.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from scheduler.protocol.lifecycle import State, Verdict
from scheduler.protocol.snapshot import Reason


class Layout(msgspec.Struct, frozen=True):
    """What every role must agree on; written once by the first manager."""

    partitions: int
    cells: int
    protocol: int
    retention_ms: int
    dead_retention_ms: int


Body = tuple[bytes, bytes]
"""Document and payload of an intake entry."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """An intake entry as it was read. `epoch` is the hold under which it was read."""

    partition: int
    epoch: int
    id: str
    fields: dict[bytes, bytes]


class Head(msgspec.Struct, frozen=True, gc=False):
    """An entry whose body was not read. fields: the short ones beside document and payload. Sizes: of document, of
    payload, and of all else with the names.
    """

    id: str
    fields: dict[bytes, bytes]
    document_bytes: int
    payload_bytes: int
    other_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of the whole entry."""
        return self.document_bytes + self.payload_bytes + self.other_bytes


class ReserveItem(msgspec.Struct, frozen=True, gc=False):
    """One job of a reserve call.

    candidates: groups of node ids; the freest of the first group that has room is taken. bound: the node that the
    session is bound to, where its slots are of interest, and preferred: the node that the job asked for, each empty for
    none. why: one word, should the job not be placed on `bound`; note: what more there is to say.
    binding: `pool src:tgt`, empty to leave the session's binding alone; stored_node: the node that the stored binding
    names, so that it is written only on change. unread: the session was never asked about, and if it is bound the job
    is not placed. keeps: the session stays bound to `bound`, if there is one, although it is placed elsewhere, if that
    is why; empty: never. follows: it is tried first where the session's last job of this call went; together: one word,
    should there be such a job and it does not follow, empty for none. limits: (kind, id, most) of each limit that it
    counts for; most 0: it is not held back by that. body: the entry's, if it is at hand.
    """

    partition: int
    epoch: int
    entry_id: str
    job_id: str
    session_id: str
    tenant_id: str
    reply_to: str
    pool: str
    candidates: tuple[tuple[str, ...], ...]
    bound: str = ""
    preferred: str = ""
    why: str = "new"
    note: str = ""
    binding: str = ""
    stored_node: str = ""
    variant: str = "-"
    unread: bool = False
    keeps: str = ""
    follows: bool = False
    together: str = ""
    limits: tuple[tuple[str, str, int], ...] = ()
    body: Body | None = None


class Reserved(msgspec.Struct, frozen=True, gc=False):
    """The slot is taken. used: slots in use on that node after it; filled: it was the last one. home: the node that the
    session is bound to now. The answer to a repeat does not tell these: -1, False and empty.
    """

    node: str
    token: int
    used: int
    home: str = ""
    filled: bool = False


class Counted(msgspec.Struct, frozen=True):
    """What a cell counts. version: of the snapshot from which on the limits are in force; kinds: of limits for which
    every reservation counts.
    """

    version: int = 0
    kinds: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return " ".join((str(self.version), *sorted(self.kinds))) if self.kinds else ""


def parse_counted(stored: str) -> Counted:
    """The reverse of str(counted). What no script has written counts nothing."""
    version, *kinds = stored.split(" ")
    return Counted(int(version), frozenset(kinds)) if version.isascii() and version.isdigit() else Counted()


class Refused(msgspec.Struct, frozen=True, gc=False):
    """The job was not placed.

    why: full, behind, limited (it waits) | failed (the script did, and nothing shows that the job is at fault: it waits
    too) | outdated (the caller must know of other limits first) | bound (its session is, and the caller did not know) |
    fenced (not our partition) | duplicate, gone (nothing left to do) | job_id_taken, cancelling, mismatch, broken (to
    be rejected; mismatch: it was submitted with other values than its document says; broken: under its id is no
    record).
    limit: with `limited`, which one, as `<kind>:<id>`. counted: with `outdated`, what the cell counts. submitted: with
    `mismatch`, its session, tenant and reply_to.
    """

    why: Literal[
        "full", "bound", "behind", "limited", "outdated", "fenced", "duplicate", "gone", "job_id_taken", "cancelling",
        "mismatch", "broken", "failed",
    ]  # fmt: skip
    limit: str = ""
    counted: Counted | None = None
    submitted: tuple[str, str, str] = ("", "", "")


DEALT_WITH: Final = ("duplicate", "gone")
"""Why a job was refused of which there is nothing left to do."""
HOLDS_BACK: Final = ("full", "bound", "behind", "limited", "outdated", "failed")
"""Why a job was refused that is still to be placed: later ones of its session are behind it."""


class ReleaseItem(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One ending. `boot` is the caller's boot and only read with verdict `reboot`."""

    job_id: str
    node: str
    partition: int
    session_id: str
    tenant_id: str
    reply_to: str
    token: int
    verdict: Verdict
    state: Literal["completed", "failed"] = "completed"
    boot: str = ""
    delay_ms: int = 0
    reason: str = ""
    detail: str = ""
    content_type: str = ""
    result: bytes = b""


class Released(msgspec.Struct, frozen=True, gc=False):
    """The reservation has ended; `state` is where the job is now."""

    state: State


class NotReleased(msgspec.Struct, frozen=True):
    """Nothing was changed. stale: not the holder any more; unknown: no record; busy: not allowed yet; moved: other
    keys; invalid: a value can be none, which `detail` names.
    """

    why: Literal["stale", "unknown", "busy", "moved", "invalid", "broken"]
    detail: str = ""


class Renewed(msgspec.Struct, frozen=True, gc=False):
    """The lease lasts until `lease_until_ms` (server time). cancelling: somebody asked to stop the job."""

    lease_until_ms: int
    cancelling: bool = False


class NotRenewed(msgspec.Struct, frozen=True):
    """stale, unknown, invalid: it is no reservation; overrun: the job ran for longer than its pool allows; crowded: its
    slot was lost, and the node has none for it at the moment.
    """

    why: Literal["stale", "unknown", "overrun", "crowded", "invalid"]


class RejectItem(msgspec.Struct, frozen=True):
    """One entry that the owner refuses. reason `cancelled` ends as cancelled, every other one as dead. size_bytes: of
    an entry that is too large.
    """

    partition: int
    epoch: int
    entry_id: str
    job_id: str
    session_id: str
    tenant_id: str
    reply_to: str
    reason: str
    detail: str
    size_bytes: int = 0


class SubmitItem(msgspec.Struct, frozen=True, gc=False):
    """One job to accept. nonce: the same one again is the same submission."""

    partition: int
    job_id: str
    session_id: str
    tenant_id: str
    reply_to: str
    nonce: str
    document: bytes
    payload: bytes


class Rebuilding(msgspec.Struct, frozen=True):
    """How far a stream is that is rebuilt.

    answer: rebuilt; open, it needs nothing any more; copying, again; records, again with those of `job_ids`; fenced.
    entries, of it now that kept their ids; renamed, those that got new ones.
    """

    answer: Literal["rebuilt", "open", "copying", "records", "fenced"]
    job_ids: tuple[bytes, ...] = ()
    entries: int = 0
    renamed: int = 0


class Submitted(msgspec.Struct, frozen=True, gc=False):
    """Accepted: the job is in the intake as `entry` (`<partition>/<entry id>`)."""

    job_id: str
    entry: str


class NotSubmitted(msgspec.Struct, frozen=True):
    """Not accepted. duplicate: this session has that job already; job_id_taken: another has; busy: backlog full;
    refused: the stream takes no entry; invalid: a value can be none.
    """

    job_id: str
    why: Literal["duplicate", "job_id_taken", "busy", "refused", "invalid"]
    detail: str = ""


class Owned(msgspec.Struct, frozen=True):
    """A partition that is ours under `epoch`."""

    partition: int
    epoch: int


class HeldByOther(msgspec.Struct, frozen=True):
    """A partition of somebody else, until `until_ms` (server time)."""

    partition: int
    owner: str
    until_ms: int


class CapacityItem(msgspec.Struct, frozen=True):
    """What the leader says of a node: its slots, for which boot, and why."""

    node: str
    slots: int
    boot: str
    reason: Reason


class CountItem(msgspec.Struct, frozen=True):
    """A reservation that is to count: of which job, and on which node. tenant_id: empty for none. session_max,
    tenant_max: the limits of its pool, 0 for none.
    """

    node: str
    job_id: str
    session_id: str
    tenant_id: str
    session_max: int = 0
    tenant_max: int = 0


class Command(msgspec.Struct, frozen=True):
    """An operator's command as read from the stream."""

    id: str
    fields: dict[bytes, bytes]


class Heartbeat(msgspec.Struct, frozen=True):
    """A heartbeat entry: document undecoded, time_ms by the server's clock."""

    id: str
    document: bytes
    time_ms: int


class Taken(msgspec.Struct, frozen=True):
    """One take: heartbeats and commands to fold. ids of heartbeats are acknowledged by the next take.

    more: commands may be left for another take. groups_made: how many groups were not there, so that what was not
    deleted yet is read again.
    """

    now_ms: int
    heartbeats: tuple[Heartbeat, ...]
    commands: tuple[Command, ...]
    more: bool = False
    groups_made: int = 0


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How a life of a job ended. result: the handler's bytes, None when they must be fetched by job id."""

    job_id: str
    session_id: str
    life: int
    state: str
    reason: str = ""
    detail: str = ""
    node: str = ""
    token: int = 0
    attempts: int = 0
    entry: str = ""
    submitted_ms: int = 0
    ended_ms: int = 0
    content_type: str = ""
    result: bytes | None = None
