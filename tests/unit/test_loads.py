"""What demo and replay submit: repeatable, exactly as many jobs as asked, clear errors for a bad trace."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.audit.workloads import (
    SPEECH,
    Arrival,
    LanguagePair,
    OfferedLoad,
    SpeechShape,
    Tenant,
    offered_load,
    parse_trace,
    read_trace,
    speech_arrivals,
)
from scheduler.errors import InvalidInput

PROJECT = Path(__file__).resolve().parents[2]
GOOD = b'{"at_ms":3000,"session_id":"c1","input_tokens":7,"output_tokens":40}'
SEGMENT_MS = 200.0


def by_session(arrivals: Sequence[Arrival]) -> dict[str, list[Arrival]]:
    """Each session's arrivals, in the order of the load."""
    sessions: dict[str, list[Arrival]] = defaultdict(list)
    for arrival in arrivals:
        sessions[arrival.session_id].append(arrival)
    return sessions


def traced(at_ms: float, session_id: str, output_tokens: int) -> bytes:
    """A line of a trace."""
    fields = f'"at_ms":{at_ms},"session_id":"{session_id}","input_tokens":1,"output_tokens":{output_tokens}'
    return b"{" + fields.encode() + b"}"


def read_or_error(line: bytes) -> str:
    """What becomes of a line after a good one; of an error, the place that it names."""
    try:
        return "read" if len(parse_trace([GOOD, line], "some.jsonl")) == 2 else "passed over"
    except InvalidInput as error:
        return str(error).partition(":")[0]


def test_the_same_seed_makes_the_same_speech_and_another_seed_another() -> None:
    """A demo can be repeated."""
    first = speech_arrivals(7, sessions=20)
    assert speech_arrivals(7, sessions=20) == first
    other = speech_arrivals(8, sessions=20)
    assert [arrival.at_ms for arrival in other] != [arrival.at_ms for arrival in first]
    pairs = [{arrival.session_id: (arrival.src_lang, arrival.tgt_lang) for arrival in load} for load in (first, other)]
    assert pairs[0] != pairs[1]


@settings(deadline=None)
@given(seed=st.integers(), sessions=st.integers(1, 60), more=st.integers(0, 400))
def test_speech_has_exactly_the_jobs_and_sessions_that_were_asked_for(seed: int, sessions: int, more: int) -> None:
    """Each session has a job, the total is exact, arrivals rise, and a session keeps its pair and tenant."""
    arrivals = speech_arrivals(seed, sessions, sessions + more)
    assert len(arrivals) == sessions + more
    assert len(by_session(arrivals)) == sessions
    assert all(earlier.at_ms <= later.at_ms for earlier, later in pairwise(arrivals))
    for jobs in by_session(arrivals).values():
        assert len({(job.src_lang, job.tgt_lang, job.tenant_id) for job in jobs}) == 1


def test_the_demo_load_is_live_speech() -> None:
    """Sessions start within seconds, speak every 200 ms in turns, pause between, and are of uneven length."""
    arrivals = speech_arrivals(1, segments_total=2_000)
    sessions = by_session(arrivals)
    sizes = sorted(len(jobs) for jobs in sessions.values())
    gaps_ms = [later.at_ms - earlier.at_ms for jobs in sessions.values() for earlier, later in pairwise(jobs)]
    within_turns = [gap for gap in gaps_ms if gap <= SEGMENT_MS + 2 * SPEECH.jitter_ms]
    assert (len(arrivals), len(sessions)) == (2_000, 200)
    assert max(jobs[0].at_ms for jobs in sessions.values()) <= SPEECH.start_spread_ms + 2 * SPEECH.jitter_ms
    assert min(gaps_ms) >= SEGMENT_MS - 2 * SPEECH.jitter_ms
    assert 0.7 < len(within_turns) / len(gaps_ms) < 0.95
    assert sizes[0] <= 3
    assert sizes[-1] >= 20
    assert 80 < median(arrival.work_ms for arrival in arrivals) < 120


def test_ten_segments_a_session_are_the_rule() -> None:
    """Without a total, the mean length of a session decides."""
    assert len(speech_arrivals(1, sessions=30)) == 300


def test_pairs_and_tenants_follow_their_weights() -> None:
    """A pair of weight 0 is never given, one of three times the weight about three times as often."""
    pairs = [LanguagePair("en", "zh", 3.0), LanguagePair("ja", "en", 1.0), LanguagePair("en", "de", 0.0)]
    arrivals = speech_arrivals(1, sessions=1_000, segments_total=1_000, pairs=pairs, tenants=[Tenant("only")])
    counts = Counter(arrival.src_lang for arrival in arrivals)
    assert {arrival.tgt_lang for arrival in arrivals} == {"zh", "en"}
    assert 650 < counts["en"] < 850
    assert {arrival.tenant_id for arrival in arrivals} == {"only"}


def test_a_session_keeps_its_pair_whatever_else_is_in_the_load() -> None:
    """The rule looks at seed and session alone."""
    alone = speech_arrivals(5, sessions=1)[0]
    among = next(arrival for arrival in speech_arrivals(5, sessions=50) if arrival.session_id == alone.session_id)
    assert (alone.src_lang, alone.tgt_lang, alone.tenant_id) == (
        among.src_lang,
        among.tgt_lang,
        among.tenant_id,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sessions": 0}, "sessions = 0: expected 1 or more"),
        ({"segments_total": 199}, "segments_total = 199: expected 200 or more, one for each session"),
        ({"segment_ms": 0.0}, "segment_ms = 0.0: expected a finite number above 0"),
        (
            {"shape": SpeechShape(jitter_ms=100.0)},
            "jitter_ms = 100.0: expected 0 to less than half a segment",
        ),
        ({"shape": SpeechShape(work_sigma=-1.0)}, "work_sigma = -1.0: expected a finite number of 0 or more"),
        ({"pairs": []}, "weights of pairs = []: expected finite, none below 0, and one above 0"),
        ({"tenants": [Tenant("a", -1.0)]}, "weights of tenants = [-1.0]: expected finite, none below 0"),
    ],
)
def test_speech_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    """An error names the argument, its value and what was expected."""
    with pytest.raises(InvalidInput) as error:
        speech_arrivals(1, **arguments)  # type: ignore[arg-type]
    assert str(error.value).startswith(message)


def test_a_trace_line_becomes_an_arrival_with_its_work_from_output_tokens() -> None:
    """Speed divides arrival and work alike; unknown fields and empty lines are passed over."""
    lines = [traced(3_000, "c1", 40), b"", b"  ", traced(6_000, "c2", 0)[:-1] + b',"more":[]}']
    only = {"pairs": [LanguagePair("en", "zh")], "tenants": [Tenant("acme")]}
    assert parse_trace(lines, "trace", speed=2.0, ms_per_token=10.0, **only) == [  # type: ignore[arg-type]
        Arrival(1_500.0, "c1", 200.0, "en", "zh", "acme"),
        Arrival(3_000.0, "c2", 0.0, "en", "zh", "acme"),
    ]


def test_a_trace_is_sorted_by_arrival_and_stable_within_an_instant() -> None:
    """Jobs of one instant keep the order of their lines, so a session keeps its order."""
    lines = [traced(9, "c1", 1), traced(3, "c2", 2), traced(9, "c1", 3), traced(3, "c2", 4)]
    arrivals = parse_trace(lines, "trace", ms_per_token=1.0)
    assert [(arrival.at_ms, arrival.work_ms) for arrival in arrivals] == [(3, 2), (3, 4), (9, 1), (9, 3)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense", "b'nonsense': expected a JSON object ("),
        (b"[1]", "[1]: expected a JSON object"),
        (b"\xff", "b'\\xff': expected a JSON object ("),
        (b"[" * 100_000, "b'[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[...: expected a JSON object ("),
        (GOOD.replace(b"3000", b'"3000"'), "at_ms = '3000': expected a number from 0 to "),
        (GOOD.replace(b"3000", b"-1"), "at_ms = -1: expected a number from 0 to "),
        (GOOD.replace(b"3000", b"true"), "at_ms = True: expected a number from 0 to "),
        (GOOD.replace(b'"at_ms":3000,', b""), "at_ms is missing: expected a number from 0 to "),
        (GOOD.replace(b"40", b"1.5"), "output_tokens = 1.5: expected a whole number from 0 to "),
        (GOOD.replace(b"40", b"9" * 30), "output_tokens = 9"),
        (GOOD.replace(b":7", b":null"), "input_tokens = None: expected a whole number from 0 to "),
        (GOOD.replace(b'"c1"', b"1"), "session_id = 1: expected a string"),
        (GOOD.replace(b'"c1"', b'"c 1"'), "session_id = 'c 1': expected 1 to 128 visible ASCII characters"),
    ],
)
def test_a_bad_trace_line_is_named_with_its_field_value_and_expectation(line: bytes, message: str) -> None:
    """An error says where to look, in which file, and what should stand there."""
    with pytest.raises(InvalidInput) as error:
        parse_trace([GOOD, line, GOOD], "some.jsonl")
    assert str(error.value).startswith(f"some.jsonl, line 2: {message}")


@settings(deadline=None)
@given(line=st.binary(max_size=80) | st.from_regex(rb'\{"at_ms":[^,]{1,9},"session_id":[^,]{1,9}\}'))
def test_no_bytes_do_more_harm_than_a_clear_error(line: bytes) -> None:
    """Whatever stands in a line, it is an arrival, nothing, or an InvalidInput that names the line."""
    assert read_or_error(line) in {"read", "passed over", "some.jsonl, line 2"}


def test_a_trace_without_requests_is_refused() -> None:
    """An empty file is a mistake, not a load."""
    with pytest.raises(InvalidInput, match=r"some\.jsonl: no requests: expected one JSON object a line"):
        parse_trace([b""], "some.jsonl")


@pytest.mark.parametrize("name", ["speed", "ms_per_token"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_factors_of_a_trace_are_positive(name: str, value: float) -> None:
    """Time neither stands still nor runs backwards."""
    with pytest.raises(InvalidInput, match=f"{name} = {value}: expected a finite number above 0"):
        parse_trace([GOOD], "some.jsonl", **{name: value})  # type: ignore[arg-type]


def test_a_trace_file_is_read_by_path(tmp_path: Path) -> None:
    """read_trace is parse_trace over the lines of a file, and names the file in errors."""
    path = tmp_path / "trace.jsonl"
    path.write_bytes(GOOD + b"\n" + traced(9, "c2", 1) + b"\r\n")
    assert read_trace(path, 3) == parse_trace([GOOD, traced(9, "c2", 1)], "trace", 3)
    path.write_bytes(GOOD + b"\n{}")
    with pytest.raises(InvalidInput) as error:
        read_trace(path)
    assert str(error.value).startswith(f"{path}, line 2: at_ms is missing")


def test_a_trace_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A wrong path and a folder are errors of the caller's, with the path in them."""
    with pytest.raises(InvalidInput, match=r"nowhere\.jsonl': No such file"):
        read_trace(tmp_path / "nowhere.jsonl")
    with pytest.raises(InvalidInput, match="expected a readable file with one JSON object a line"):
        read_trace(tmp_path)


def test_the_recorded_conversations_are_read_whole() -> None:
    """12,031 requests of 7,373 conversations; speed changes the time and not the slots in use."""
    folder = os.environ.get("SCHED_TEST_DATA")
    path = (Path(folder) if folder else PROJECT.parent / "shared" / "data") / "conversations.jsonl"
    if not path.exists():
        pytest.skip(f"no {path.name}: SCHED_TEST_DATA names no folder with it, nor is it in ../shared/data")
    arrivals = read_trace(path, seed=1)
    recorded, fast = offered_load(arrivals), offered_load(read_trace(path, seed=1, speed=60.0))
    assert len(by_session(arrivals)) == 7_373
    assert max(len(jobs) for jobs in by_session(arrivals).values()) == 43
    assert all(len({job.src_lang + job.tgt_lang for job in jobs}) == 1 for jobs in by_session(arrivals).values())
    assert (recorded.jobs, fast.jobs) == (12_031, 12_031)
    assert arrivals[-1].at_ms == 3_536_999
    assert fast.duration_ms == pytest.approx(recorded.duration_ms / 60)
    assert fast.mean_slots == pytest.approx(recorded.mean_slots)


def seed_arrivals(*spans: tuple[float, float]) -> list[Arrival]:
    """Arrivals (at_ms, work_ms) of one session."""
    return [Arrival(at_ms, "s", work_ms, "en", "zh", "acme") for at_ms, work_ms in spans]


def test_offered_load_says_mean_and_peak() -> None:
    """An end makes room for a start of the same instant; jobs without work take no slot."""
    assert offered_load([]) == OfferedLoad(0, 0.0, 0.0, 0)
    assert offered_load(seed_arrivals((5, 0))) == OfferedLoad(1, 0.0, 0.0, 0)
    assert offered_load(seed_arrivals((0, 10), (10, 10), (10, 10))) == OfferedLoad(3, 20.0, 1.5, 2)


@given(spans=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), min_size=1, max_size=15))
def test_the_peak_agrees_with_looking_at_every_instant(spans: list[tuple[int, int]]) -> None:
    """The peak is the most that run at any millisecond, and no mean is above it."""
    load = offered_load(seed_arrivals(*spans))
    running = [sum(start <= at_ms < start + work for start, work in spans) for at_ms in range(30)]
    assert load.peak_slots == max(running)
    assert load.mean_slots * load.duration_ms == pytest.approx(sum(running))
    assert load.mean_slots <= load.peak_slots + 1e-9
