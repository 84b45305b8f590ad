"""A node's bound on the server's time, with delays, pauses and answers in any order."""

from __future__ import annotations

from typing import Final, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.leases import Reservation, ServerClock, first_lease_ends_ms, may_run, to_stop

MARGIN_MS: Final = 100
START_MS: Final = 500
LEASE_MS: Final = 900
WATCH_MS_MAX: Final = MARGIN_MS - 2
ROUNDING_MS: Final = 1e-6


class Request(NamedTuple):
    """A call: what time passes before it is sent, until the server answers, and until the answer is heard."""

    pause_ms: float
    there_ms: float
    back_ms: float


durations = st.floats(0, 2_000)
requests = st.lists(st.builds(Request, durations, durations, durations), min_size=1, max_size=8)
offsets = st.floats(0, 10**6)


@settings(deadline=None)
@given(requests, offsets, offsets, st.lists(durations, min_size=1, max_size=8))
def test_the_bound_is_never_below_the_servers_time(
    calls: list[Request], server_ms: float, node_ms: float, looks: list[float]
) -> None:
    """However long calls take, whichever answer comes first, and however long the process is stopped."""
    heard = []
    passed = 0.0
    for call in calls:
        passed += call.pause_ms
        answered = passed + call.there_ms
        heard.append((answered + call.back_ms, int(server_ms + answered), node_ms + passed))
    clock = ServerClock()
    for at, now_ms, sent_ms in sorted(heard):
        clock.heard(now_ms, sent_ms)
        for look in looks:
            assert clock.latest_ms(node_ms + at + look) > server_ms + at + look - ROUNDING_MS


@settings(deadline=None)
@given(
    st.floats(0, 2_000),
    requests,
    st.lists(st.floats(0, WATCH_MS_MAX), min_size=1, max_size=30),
    st.lists(st.booleans(), min_size=1, max_size=8),
    st.lists(st.floats(-100_000, 100_000), min_size=1, max_size=8),
)
def test_no_handler_runs_past_its_lease(
    arrives_ms: float, calls: list[Request], watches: list[float], renews: list[bool], steps: list[float]
) -> None:
    """An assignment may come late, renewals may take long, and the server's clock may be stepped before each of them:
    while the node looks as often as it promises, whatever runs was started and is stopped within its lease.
    """
    clock = ServerClock()
    reserved_ms = calls[0].there_ms
    lease_until_ms = int(reserved_ms) + START_MS  # by the server's clock, which was right until then
    ends_ms = reserved_ms + START_MS  # in truth
    events: list[tuple[float, int, float, bool]] = []
    sent = step_ms = 0.0
    for i, call in enumerate(calls):
        answered = sent + call.there_ms
        is_renewal = i > 0 and renews[i % len(renews)]
        events.append((answered + call.back_ms, int(answered + step_ms), sent, is_renewal))
        step_ms += steps[i % len(steps)] if i > 0 else 0.0
        sent += call.pause_ms
    instants = [reserved_ms + arrives_ms]
    for watch in watches:
        instants.append(instants[-1] + watch)
    lease = Reservation("j1", 1, -1.0, LEASE_MS, START_MS)
    running = False
    for i, instant in enumerate(instants):
        for at, now_ms, sent_ms, renewal in sorted(events):
            if at <= instant:
                clock.heard(now_ms, sent_ms)
                if renewal and i > 0 and running:
                    lease.ends_ms, lease.length_ms = sent_ms + LEASE_MS, LEASE_MS
                    ends_ms = max(ends_ms, sent_ms + LEASE_MS)
        events = [event for event in events if event[0] > instant]
        if i == 0 and all(at > instant for at, *_ in events[1:]):
            found = first_lease_ends_ms(lease_until_ms, START_MS, clock.latest_ms(instant), instant)
            lease.ends_ms = instant if found is None else found
            running = may_run(lease, instant, MARGIN_MS)
        elif to_stop([lease], instant, MARGIN_MS):
            running = False
        if running:
            next_look_ms = instant + WATCH_MS_MAX
            assert next_look_ms < ends_ms
