"""Placement over any fleet: candidates can serve the job, there are few of them, and a change moves what it must."""

from __future__ import annotations

from random import Random
from typing import Final

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scheduler.protocol.snapshot import Node, Pool, Snapshot
from scheduler.runtime.index import Index
from scheduler.runtime.intake import Job
from scheduler.runtime.placement.candidates import classify, place, place_among, rendezvous
from scheduler.runtime.placement.sampler import Sampler
from scheduler.session.bindings import Binding
from tests.unit.arrange import EN_DE, EN_ZH, a_job

KEYS: Final = [f"k{i}" for i in range(200)]
PAIRS: Final = (EN_ZH, EN_DE, ("", ""))

names = st.sampled_from([f"pool{i}" for i in range(8)])
weights = st.dictionaries(names, st.integers(1, 50), min_size=1)
pool_ids = st.sampled_from(["a", "b", "c"])
nodes = st.lists(
    st.builds(
        Node,
        st.integers(0, 30).map(lambda number: f"n{number}"),
        st.just("1000-a"),
        st.integers(1, 4),
        pool_ids,
        st.sets(st.sampled_from(PAIRS[:2])).map(lambda pairs: tuple(sorted(pairs))),
        st.sets(st.sampled_from(["asr", "gpu"])).map(lambda features: tuple(sorted(features))),
    ),
    max_size=30,
    unique_by=lambda node: node.id,
)
counts = st.integers(1, 5)
pools = st.builds(
    Pool,
    pool_ids,
    st.sampled_from(["affinity", "spread", "least_loaded"]),
    st.lists(pool_ids, max_size=3).map(tuple),
    candidates=counts,
    pressure=st.sampled_from(["stay", "return"]),
)
snapshots = st.builds(
    Snapshot, st.just(1), nodes.map(tuple), st.lists(pools, max_size=3, unique_by=lambda pool: pool.id).map(tuple)
)
node_ids = st.integers(0, 31).map(lambda number: f"n{number}")
jobs = st.builds(
    lambda pair, features, avoid: a_job(pair=pair, features=features, avoid=avoid),
    st.sampled_from(PAIRS),
    st.sampled_from([(), ("gpu",), ("asr", "gpu")]),
    st.just("") | node_ids,
)
bindings = st.none() | st.builds(
    lambda pool, pair, node: Binding(pool, pair[0], pair[1], node), pool_ids, st.sampled_from(PAIRS), node_ids
)


def serves(node: Node, job: Job) -> bool:
    """Whether a node can run a job, straight from the words of the design."""
    in_pair = not job.src_lang or (job.src_lang, job.tgt_lang) in node.pairs
    return in_pair and set(job.features) <= set(node.features)


@settings(deadline=None)
@given(weights, names, st.integers(1, 50))
def test_a_pool_that_joins_or_leaves_moves_only_its_own_keys(before: dict[str, int], joins: str, weight: int) -> None:
    """Everybody else's sessions stay where they are."""
    assume(joins not in before)
    after = before | {joins: weight}
    assert {key: rendezvous(key, after) for key in KEYS if rendezvous(key, after) != rendezvous(key, before)} == {
        key: joins for key in KEYS if rendezvous(key, after) == joins
    }


@settings(deadline=None)
@given(weights, st.randoms(use_true_random=False), st.integers(1, 50))
def test_a_pool_that_grows_only_gains_keys(before: dict[str, int], random: Random, more: int) -> None:
    """A key that moves, moves to the pool that has more slots than before."""
    grows = random.choice(sorted(before))
    after = before | {grows: before[grows] + more}
    moved = {rendezvous(key, after) for key in KEYS if rendezvous(key, after) != rendezvous(key, before)}
    assert moved <= {grows}


@settings(deadline=None)
@given(snapshots, jobs, bindings, st.integers(0, 9))
def test_candidates_are_few_can_serve_the_job_and_are_of_its_pool(
    snapshot: Snapshot, job: Job, binding: Binding | None, seed: int
) -> None:
    """And there are some as soon as anybody can serve the job."""
    index = Index(snapshot)
    able = {node.id for node in snapshot.nodes if serves(node, job)}
    job_class = classify(job, binding, index)
    found = place(job, job_class, binding, index, Sampler({}, Random(seed)))
    if found is None:
        assert not able
        return
    candidates = found.candidates
    assert 1 <= len(candidates) <= index.policy(job_class.pool).candidates
    assert len(set(candidates)) == len(candidates)
    assert set(candidates) <= able & {node.id for node in index.eligible(job_class)}
    bound = {binding.node} if binding else set()
    assert {index.nodes[name].pool for name in set(candidates) - bound} <= {job_class.pool}


@settings(deadline=None)
@given(snapshots, jobs, bindings, st.sets(node_ids), st.integers(0, 9))
def test_of_the_named_nodes_every_eligible_one_is_a_candidate_tier_by_tier(
    snapshot: Snapshot, job: Job, binding: Binding | None, named: set[str], seed: int
) -> None:
    """A node with room is not left out because of load, strategy or an earlier failure."""
    index = Index(snapshot)
    job_class = classify(job, binding, index)
    eligible = {node.id for node in index.eligible(job_class)}
    found = place_among(job, job_class, binding, index, sorted(named), {}, Random(seed))
    candidates = found.candidates if found else ()
    bound = {binding.node} if binding else set()
    assert named & eligible <= set(candidates) <= eligible
    assert set(candidates) - named <= bound
    tiers = [index.tiers(job_class.pool).index(index.nodes[name].pool) for name in candidates if name not in bound]
    assert tiers == sorted(tiers)


@settings(deadline=None)
@given(snapshots, jobs, pool_ids, node_ids, st.integers(0, 9))
def test_a_session_stays_where_it_is_bound(snapshot: Snapshot, job: Job, pool: str, node: str, seed: int) -> None:
    """Its pool is kept while the pair is the same and the pool can serve; with affinity its node comes first."""
    index = Index(snapshot)
    binding = Binding(pool, job.src_lang, job.tgt_lang, node)
    members = {each.id for each in snapshot.nodes if each.pool == pool and serves(each, job)}
    job_class = classify(job, binding, index)
    if not members:
        assert job_class.pool != pool
        return
    assert job_class.pool == pool
    found = place(job, job_class, binding, index, Sampler({}, Random(seed)))
    assert found is not None
    strategy = index.pools[pool].strategy if pool in index.pools else "affinity"
    if node in members - {job.avoid} and strategy == "affinity":
        assert (found.groups[0], found.bound) == ((node,), node)
    if strategy == "spread" and members - {node, job.avoid}:
        assert node not in found.candidates


@settings(deadline=None)
@given(snapshots, snapshots, st.lists(jobs, max_size=4))
def test_an_index_made_from_another_answers_as_one_made_anew(
    before: Snapshot, after: Snapshot, asked: list[Job]
) -> None:
    """Whatever was remembered, and whatever changed."""
    earlier = Index(before)
    for job in asked:
        earlier.serves(classify(job, None, earlier), "n0")
    index, anew = Index(after, earlier), Index(after)
    for job in asked:
        job_class = classify(job, None, index)
        assert job_class == classify(job, None, anew)
        assert answers(index, job) == answers(anew, job)
    assert index._postings == anew._postings


def answers(index: Index, job: Job) -> tuple[object, object]:
    """What an index says of a job, whatever the order of the nodes within a pool."""
    members = index.members(job.src_lang, job.tgt_lang, job.features)
    known = {pool: (sorted(found.ids), found.slots, found.trusted is None) for pool, found in members.items()}
    return known, sorted(node.id for node in index.eligible(classify(job, None, index)))
