"""A node's leases by its own clock, with delays and pauses anywhere, and whatever the server's clock does."""

from __future__ import annotations

from typing import Final, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.node.leases import Reservation, may_run, to_stop

MARGIN_MS: Final = 100
START_MS: Final = 500
LEASE_MS: Final = 900
WATCH_MS_MAX: Final = MARGIN_MS - 2


class Call(NamedTuple):
    """What time passes before it is sent, until the server acts, and until the answer is heard."""

    pause_ms: float
    there_ms: float
    back_ms: float


durations = st.floats(0, 2_000)
calls = st.builds(Call, durations, durations, durations)


@settings(deadline=None)
@given(calls, durations, durations, st.lists(calls, max_size=8), st.lists(st.floats(0, WATCH_MS_MAX), max_size=30))
def test_no_handler_runs_past_its_lease(
    read: Call, made_ms: float, arrives_ms: float, renewals: list[Call], watches: list[float]
) -> None:
    """The last read before may take long, the assignment may come late, and renewals may take long: while the node
    looks as often as it promises, whatever runs was started and is stopped within its lease.
    """
    sent_ms, read_ms = read.pause_ms, read.pause_ms + read.there_ms
    reserved_ms = read_ms + made_ms  # or that read would have brought it
    ends_ms = reserved_ms + START_MS  # in truth
    lease = Reservation("j1", 1, sent_ms + START_MS, LEASE_MS, START_MS)
    instant_ms = reserved_ms + arrives_ms
    running = may_run(lease, instant_ms, MARGIN_MS)
    answers: list[tuple[float, float, float]] = []
    renewed_ms = instant_ms
    for renewal in renewals:
        renewed_ms += renewal.pause_ms
        acted_ms = renewed_ms + renewal.there_ms
        answers.append((acted_ms + renewal.back_ms, renewed_ms, acted_ms))
    for watch_ms in (0.0, *watches):
        instant_ms += watch_ms
        for heard_ms, asked_ms, acted_ms in sorted(answers):
            if heard_ms <= instant_ms and running:
                lease.ends_ms, lease.length_ms = max(lease.ends_ms, asked_ms + LEASE_MS), LEASE_MS
                ends_ms = max(ends_ms, acted_ms + LEASE_MS)
        answers = [answer for answer in answers if answer[0] > instant_ms]
        running = running and not to_stop([lease], instant_ms, MARGIN_MS)
        if running:
            assert instant_ms + WATCH_MS_MAX < ends_ms
