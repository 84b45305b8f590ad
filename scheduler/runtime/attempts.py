"""Decides attempts: which jobs are tried now, on which nodes, and in which calls.

It reads a dispatcher's state and changes only the places of waiting jobs in it. No server is asked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from scheduler.runtime.dispatch_state import DispatchState
from scheduler.runtime.intake import Job, JobClass
from scheduler.runtime.placement import candidates
from scheduler.runtime.placement.attempt import Call, PlacementAttempt
from scheduler.runtime.placement.sampler import Sampler
from scheduler.runtime.waiting.queues import Waiter


def chunks(jobs: Sequence[Job], size: int, lane_of: Callable[[int], int]) -> Iterator[Sequence[Job]]:
    """Divide jobs into calls of at most `size`, each partition in its order.

    More than one call is divided into two lanes that take turns. A call then shares no partition with the one before,
    and can be sent while that one is under way.

    lane_of: partition -> 0 or 1.
    """
    if len(jobs) <= size:
        yield jobs
        return
    lanes: tuple[list[Job], list[Job]] = ([], [])
    for job in jobs:
        lanes[lane_of(job.partition)].append(job)
    for start in range(0, max(map(len, lanes)), size):
        for lane in lanes:
            if start < len(lane):
                yield lane[start : start + size]


def call_for(state: DispatchState, attempts: list[PlacementAttempt], now_ms: float, is_again: bool = False) -> Call:
    """A call that is sent now."""
    partitions = frozenset([attempt.job.partition for attempt in attempts])
    return Call(attempts, partitions, now_ms, state.index, state.waiting.limits.mark, is_again)


def decide(state: DispatchState, jobs: Sequence[Job], random: Random, now_ms: float) -> list[PlacementAttempt]:
    """An attempt for each newcomer that is still ours, with candidates if it may be tried now."""
    holds, bindings, waiting, index = state.partitions.holds, state.bindings, state.waiting, state.index
    sampler = Sampler(state.loads, random, len(jobs))
    attempts: list[PlacementAttempt] = []
    held_back: set[str] = set()
    earlier: dict[str, JobClass] = {}
    for job in jobs:
        if not holds(job.partition, job.epoch):
            continue
        session_id = job.session_id
        binding, is_fresh = bindings.get(session_id, now_ms)
        job_class = candidates.classify(job, binding, index)
        placement = None
        if session_id not in held_back and not waiting.must_wait(job, job_class):
            placement = candidates.place(job, job_class, binding, index, sampler)
        if placement is None:
            held_back.add(session_id)
        before = earlier.get(session_id)
        follows, together = False, ""
        if before is not None:
            binds = index.policy(job_class.pool).strategy == "affinity"
            follows = before == job_class and binds and not job.avoid
            together = "" if follows else candidates.together(job_class, before, binds)
        is_unread = binding is None and session_id not in bindings
        attempts.append(
            PlacementAttempt(job, job_class, None, placement, binding, is_fresh, is_unread, follows, together)
        )
        earlier[session_id] = job_class
    return attempts


def decide_waiting(
    state: DispatchState, waiters: Sequence[Waiter], random: Random, now_ms: float
) -> list[PlacementAttempt]:
    """An attempt for each waiter whose turn it is, unless it blocks or asks instead.

    The bindings of their sessions must have been read.
    """
    attempts = []
    for waiter in waiters:
        attempt = _decide_waiter(state, waiter, random, now_ms)
        if attempt is not None:
            attempts.append(attempt)
    return attempts


def _decide_waiter(state: DispatchState, waiter: Waiter, random: Random, now_ms: float) -> PlacementAttempt | None:
    job, index = waiter.job, state.index
    binding, is_fresh = state.bindings.get(job.session_id, now_ms)
    if waiter.hint is None:
        job_class = candidates.classify(job, binding, index)
        if job_class != waiter.job_class:
            state.waiting.reclassify(waiter, job_class)
            return None
        placement = candidates.place(job, job_class, binding, index, Sampler(state.loads, random))
        if placement is None:
            state.waiting.block(waiter)
            return None
    else:
        placement = candidates.place_among(job, waiter.job_class, binding, index, waiter.hint, state.loads, random)
        if placement is None:
            waiter.is_hint_complete = False
            state.waiting.still_full(waiter, waiter.hint)
            return None
    return PlacementAttempt(job, waiter.job_class, waiter, placement, binding, is_fresh)


def defer(state: DispatchState, jobs: Sequence[Job], now_ms: float) -> Sequence[Job]:
    """Defer newcomers that must not be placed before the deferred ones have been read again.

    Returns: the jobs that are not deferred.
    """
    if not state.overflow:
        return jobs
    kept = []
    for job in jobs:
        if not state.partitions.holds(job.partition, job.epoch):
            continue
        if state.must_defer(job, state.classify(job, now_ms)):
            state.overflow.defer(job)
        else:
            kept.append(job)
    return kept


def split(state: DispatchState, jobs: Sequence[Job], now_ms: float) -> tuple[list[Job], list[Job]]:
    """Newcomers that may be tried now, and those that come later. Once a job is to come later, so are all the next jobs
    of its session.
    """
    now: list[Job] = []
    later: list[Job] = []
    held_back: set[str] = set()
    for job in jobs:
        job_class = state.classify(job, now_ms)
        waits = job.session_id in held_back or state.waiting.must_wait(job, job_class)
        if waits or state.must_defer(job, job_class):
            held_back.add(job.session_id)
            later.append(job)
        else:
            now.append(job)
    return now, later


def open_nodes(
    state: DispatchState, waiters: Sequence[Waiter], has_room: Mapping[str, bool], random: Random
) -> dict[JobClass, list[str]]:
    """The eligible nodes with room for the classes of these waiters, in the order in which they are to be tried."""
    nodes_of: dict[JobClass, list[str]] = {}
    for waiter in waiters:
        if waiter.job_class not in nodes_of and waiter.state != "left":
            nodes = [node.id for node in state.index.eligible(waiter.job_class) if has_room.get(node.id)]
            random.shuffle(nodes)
            nodes_of[waiter.job_class] = nodes
    return nodes_of


def nodes_to_ask(state: DispatchState, waiters: Sequence[Waiter]) -> list[str]:
    """The eligible nodes of the classes of these waiters, each once."""
    classes = dict.fromkeys(waiter.job_class for waiter in waiters)
    return list(dict.fromkeys(node.id for job_class in classes for node in state.index.eligible(job_class)))
