"""What a placement costs in the dispatcher, whatever the size of the fleet: classify and place, and nothing else.

Pure files alone run here: no server, no event loop. The jobs are a mix of bound and new sessions, with and without
features and languages. Fleets of different sizes take turns in each round; what is remembered for a version (the
members of a class) is made in a round before, as it is made once a version.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random
from statistics import median
from typing import Final

import msgspec

from benchmarks.measure import without_collections
from benchmarks.verdict import Claim, Shown
from scheduler.protocol.documents import JobDocument
from scheduler.protocol.snapshot import Node, Pool, Snapshot
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job
from scheduler.runtime.placement.candidates import classify, place
from scheduler.runtime.placement.sampler import Sampler
from scheduler.session.bindings import Binding

POOLS: Final = ("p0", "p1", "p2", "p3")
LANGUAGES: Final = ("en", "zh", "de", "ja", "fr", "es")
PAIRS: Final = tuple((source, target) for source in LANGUAGES for target in LANGUAGES if source != target)
WEIGHTS: Final = tuple(1 / rank for rank in range(1, len(PAIRS) + 1))
"""How often jobs ask for each pair: a few pairs are asked for often, many rarely."""
PAIRS_A_NODE: Final = 10
FEATURES: Final = ("asr", "tts", "llm")
BOUND_SHARE: Final = 0.7
FEATURE_SHARE: Final = 0.3
NO_LANGUAGE_SHARE: Final = 0.1
BATCH: Final = 128
HUGE: Final = 100_000
"""Nodes of the largest fleet that is measured."""
RATIO_MAX: Final = 1.5


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is run. sizes: nodes of each fleet; jobs: of each fleet in each round."""

    sizes: tuple[int, ...]
    rounds: int
    jobs: int
    seed: int


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Of one fleet: CPU microseconds a job, of all rounds; placed: the share that got candidates; classes: how many
    different ones the jobs are of.
    """

    nodes: int
    us: float
    us_min: float
    us_max: float
    rounds: tuple[float, ...]
    placed: float
    classes: int


class Fleet:
    """A snapshot's index, jobs for it, and what a dispatcher remembers."""

    def __init__(self, size: int, jobs: int, seed: int) -> None:
        random = Random(seed)
        nodes = tuple(a_node(f"n{number}", random) for number in range(size))
        self.size = size
        self.index = Index(Snapshot(1, nodes, tuple(Pool(name) for name in POOLS)))
        self.loads = {node.id: random.randrange(node.slots) for node in nodes}
        self.jobs = [_job(number, random) for number in range(jobs)]
        self.bindings = [_binding(job, self.index, random) for job in self.jobs]
        self.random = random
        self.placed = 0
        jobs_and_bindings = zip(self.jobs, self.bindings, strict=True)
        self.classes = len({classify(job, binding, self.index) for job, binding in jobs_and_bindings})

    def run_once(self) -> float:
        """Place all jobs, a call after the other. Returns: microseconds a job."""
        index, placed = self.index, 0
        from_ns = time.process_time_ns()
        for start in range(0, len(self.jobs), BATCH):
            sampler = Sampler(self.loads, self.random, BATCH)
            for position in range(start, min(start + BATCH, len(self.jobs))):
                job, binding = self.jobs[position], self.bindings[position]
                job_class = classify(job, binding, index)
                placed += place(job, job_class, binding, index, sampler) is not None
        spent_ns = time.process_time_ns() - from_ns
        self.placed = placed
        return spent_ns / 1_000 / len(self.jobs)


def a_node(name: str, random: Random) -> Node:
    """A node of a mixed fleet."""
    return Node(
        id=name,
        boot="1-a",
        slots=8,
        pool=random.choice(POOLS),
        pairs=tuple(sorted(random.sample(PAIRS, PAIRS_A_NODE))),
        features=tuple(feature for feature in FEATURES if random.random() < 0.5),
    )


def _job(number: int, random: Random) -> Job:
    source, target = ("", "") if random.random() < NO_LANGUAGE_SHARE else random.choices(PAIRS, WEIGHTS)[0]
    features = (random.choice(FEATURES),) if not source or random.random() < FEATURE_SHARE else ()
    session = f"s{number}"
    return Job(
        partition=0,
        epoch=1,
        entry_id=f"{number}-0",
        job_id=f"j{number}",
        document=JobDocument(session, f"j{number}", source, target, features=features),
        features=features,
        routing_key=session,
        deadline_at_ms=None,
        avoid="",
    )


def _binding(job: Job, index: Index, random: Random) -> Binding | None:
    """Where the session of a job is bound, None for a new one."""
    if random.random() >= BOUND_SHARE:
        return None
    members = index.members(job.src_lang, job.tgt_lang, job.features)
    nodes = [node for pool in sorted(members) for node in members[pool].nodes]
    if not nodes:
        return None
    node = random.choice(nodes)
    return Binding(node.pool, job.src_lang, job.tgt_lang, node.id)


def measure(plan: Plan) -> list[Cost]:
    """Every fleet in every round, after one to warm up."""
    fleets = [Fleet(size, plan.jobs, plan.seed) for size in plan.sizes]
    rounds: list[list[float]] = [[] for _ in fleets]
    with without_collections():
        for number in range(plan.rounds + 1):
            for fleet, found in zip(fleets, rounds, strict=True):
                us = fleet.run_once()
                if number:
                    found.append(us)
    return [_cost(fleet, found) for fleet, found in zip(fleets, rounds, strict=True)]


def _cost(fleet: Fleet, rounds: Sequence[float]) -> Cost:
    return Cost(
        nodes=fleet.size,
        us=round(median(rounds), 2),
        us_min=round(min(rounds), 2),
        us_max=round(max(rounds), 2),
        rounds=tuple(round(us, 2) for us in rounds),
        placed=round(fleet.placed / len(fleet.jobs), 3),
        classes=fleet.classes,
    )


def show(machine: dict[str, str | int], plan: Plan, costs: Sequence[Cost]) -> Shown:
    """Cost by size of the fleet, and the verdict on every larger one by the first."""
    ratios = {cost.nodes: round(cost.us / costs[0].us, 3) for cost in costs[1:]}
    lines = [f"{'nodes':>10}{'CPU us/job':>12}{'min':>10}{'max':>10}{'by the first':>15}"]
    for cost in costs:
        by_first = cost.us / costs[0].us
        lines.append(f"{cost.nodes:10,}{cost.us:12.2f}{cost.us_min:10.2f}{cost.us_max:10.2f}{by_first:15.3f}")
    lines.append(f"medians of {plan.rounds} rounds; jobs of {costs[1].classes:,} classes")
    return Shown(
        facts=machine,
        inputs=msgspec.structs.asdict(plan),
        figures={"costs": costs, "ratios": ratios},
        lines=lines,
        claims=[
            Claim(f"cost of a placement with {nodes:,} nodes by that with {costs[0].nodes:,}", ratio, RATIO_MAX)
            for nodes, ratio in ratios.items()
        ],
    )
