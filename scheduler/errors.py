"""Everything that can be raised on purpose. Expected outcomes of a script are values (see model.py), not errors.

SchedulerError
+-- InvalidInput          something that a caller or a file gave is wrong; names the thing, the value, the expectation
|   +-- InvalidConfig     the same, of a configuration key
|   |   +-- UnknownKey    a configuration key that there is not
|   +-- Unencodable       a handler returned what cannot be stored as it is
+-- ServerUnavailable     no server, or none that answers
|   +-- ServerNotReady    a server answers, and for too long that it cannot do this now (loading, full, busy)
+-- ServerRefused         a server answers but cannot be used (eviction, protocol, layout, too old, a replica, rights)
|   +-- CredentialsRefused   the same: user or password are wrong
+-- Fenced                a newer leader or owner exists; the caller must stop acting on what it held
+-- ServerReplaced         another server process answers than the one that a call was made for
+-- WrongType             somebody has stored another type in a key than belongs there; names the key
+-- PublishConflict       the server has not what was published last: it has lost it, or somebody has changed it
+-- IllegalTransition     the transition table has no such step
+-- NotAccepted           a job was not accepted: its id is taken, or the backlog is full
+-- JobFailed             a job ended without completing (raised by Producer.result only)
+-- UnknownJob            there is no record of a job: it was never submitted, or is forgotten
+-- Retry                 raised by a handler: try this job again, after a delay of its choice
+-- Reject                raised by a handler: do not try this job again
"""

from __future__ import annotations

import re
from typing import Final

from scheduler.visible import visible_lines

# A URL with a password that has spaces goes on behind them; what follows a host is a port.
_URL: Final = re.compile(
    r"(\w://)((?:(?<=redis://)|(?<=rediss://)|(?<=unix://))[^\s:/@]*:(?!\d{1,5}(?:\W|$))[^\n@]{0,200}@\S*|\S*)",
    re.IGNORECASE,
)
_SECRET_OPTION: Final = re.compile(r"([?&]\w*(?:pass|pwd|secret|token|user)\w*=)[^&\s]*", re.IGNORECASE)
DELAY_MS_MAX: Final = 10**12  # as for all numbers, see config.py


class SchedulerError(Exception):
    """Base of every error that this package raises on purpose. Its text can be shown: what others said is visible."""

    def __str__(self) -> str:
        return visible_lines(super().__str__())


class InvalidInput(SchedulerError):
    """Input that cannot be used; the message names the thing, the value and what was expected. Passwords are hidden."""

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class InvalidConfig(InvalidInput):
    """A configuration key that cannot be used."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} = {value!r}: expected {expected}")
        self.key = key
        self.value = value
        self.expected = expected


class Unencodable(InvalidInput):
    """What a handler returned would not be read as it was; the message says where and why."""


class UnknownKey(InvalidConfig):
    """A configuration key that there is not. Its value is kept nowhere: it may be a password."""

    def __init__(self, key: str, expected: str) -> None:
        InvalidInput.__init__(self, f"{key}: expected {expected}")
        self.key = key
        self.value = None
        self.expected = expected


def without_credentials(text: object) -> str:
    """A text without user and password of each URL in it, also where these are not percent-encoded.

    For what others have said. What we say ourselves of a server's URL is the text of a `ServerUrl`.
    """
    return _URL.sub(_without_userinfo, str(text))


def _without_userinfo(url: re.Match[str]) -> str:
    _, at, behind = _SECRET_OPTION.sub(r"\1***", url[2]).rpartition("@")
    return url[1] + ("***@" if at else "") + behind


class ServerUnavailable(SchedulerError):
    """No server was found, or the one that was found does not answer. The message hides passwords in URLs."""

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class ServerNotReady(ServerUnavailable):
    """The server answers, in the words that the message ends with, that it cannot do now what was asked of it."""


class ServerReplaced(SchedulerError):
    """Another server process answers than the one that a call was made for; the call was not sent."""


class ServerRefused(SchedulerError):
    """The server answers but must not be used: its settings, version, layout or rights do not fit. Passwords are
    hidden.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


class CredentialsRefused(ServerRefused):
    """The server knows no such user with such a password. Waiting does not help, not even a process that runs."""


class Fenced(SchedulerError):
    """A newer holder exists. epoch: the one that was seen in a cell, 0 where it is not told."""

    def __init__(self, message: str, epoch: int = 0) -> None:
        super().__init__(message)
        self.epoch = epoch


class PublishConflict(SchedulerError):
    """What was written last is not there any more, so that nothing can be built on it."""


class WrongType(SchedulerError):
    """Keys hold another type than belongs there; the call cannot be done before they are deleted.

    Attributes: keys, these.
    """

    def __init__(self, message: str, keys: tuple[str, ...]) -> None:
        super().__init__(message)
        self.keys = keys


class IllegalTransition(SchedulerError):
    """No row of the transition table allows this step."""


class NotAccepted(SchedulerError):
    """A job was not accepted.

    Attributes: job_id, why ("duplicate" | "job_id_taken" | "busy" | "refused" | "invalid"), detail.
    """

    def __init__(self, job_id: str, why: str, detail: str = "") -> None:
        super().__init__(f"job {job_id} is not accepted: {why}" + (f" ({detail})" if detail else ""))
        self.job_id = job_id
        self.why = why
        self.detail = detail


class JobFailed(SchedulerError):
    """A job ended as failed, dead or cancelled.

    Attributes: job_id, state ("failed" | "dead" | "cancelled"), reason, detail.
    """

    def __init__(self, job_id: str, state: str, reason: str, detail: str = "") -> None:
        super().__init__(f"job {job_id} ended as {state}: {reason}" + (f" ({detail})" if detail else ""))
        self.job_id = job_id
        self.state = state
        self.reason = reason
        self.detail = detail


class UnknownJob(SchedulerError):
    """The server has no record of a job.

    Attributes: job_id; was_known, whether this producer submitted it or saw its record: then it is gone for good.
    """

    def __init__(self, job_id: str, was_known: bool, unknown_ms: int | None = None) -> None:
        if was_known:
            why = "its retention has ended, or the server has lost it"
        else:
            why = (
                f"no record of it was found for {unknown_ms} ms: it was never submitted, its retention has ended, "
                "or it was written by XADD and is not placed yet"
            )
        super().__init__(f"nothing is known of job {job_id}: {why}")
        self.job_id = job_id
        self.was_known = was_known


class Retry(SchedulerError):
    """A handler asks for another attempt.

    Args: reason, shown to operators; delay_ms, None for the backoff of the node.
    """

    def __init__(self, reason: str = "the handler asked for it", delay_ms: int | None = None) -> None:
        super().__init__(reason)
        is_number = isinstance(delay_ms, int | float) and not isinstance(delay_ms, bool)
        if delay_ms is not None and not (is_number and abs(delay_ms) <= DELAY_MS_MAX):
            raise InvalidInput(f"Retry: delay_ms = {delay_ms!r}: expected milliseconds, or None")
        self.delay_ms = None if delay_ms is None else max(0, round(delay_ms))

    __str__ = Exception.__str__  # what a handler said is stored as it is


class Reject(SchedulerError):
    """A handler says that another attempt is of no use: the job ends as failed."""

    __str__ = Exception.__str__
