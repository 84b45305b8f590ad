"""What is in force of a pool, and which nodes its rule takes."""

from __future__ import annotations

import msgspec
import pytest

from scheduler.config import DEFAULTS
from scheduler.management.pools import DEFAULT_POOL, PoolDocument, complete, in_force, node_rules, pool_of, to_table
from scheduler.protocol.documents import NodeBeat
from scheduler.protocol.snapshot import Match, Pool
from tests.unit.arrange import BOOT, EN_DE, EN_ZH
from tests.unit.test_pools import GOLD


def test_what_a_pool_does_not_say_comes_from_the_settings() -> None:
    """Strategy, candidates, leases, attempts and backoff; what it says is its own."""
    settings = msgspec.structs.replace(
        DEFAULTS, strategy="spread", candidates_max=2, start_ms=3, lease_ms=4, run_ms_max=5, attempts_max=6,
        crashes_max=7, backoff_ms=8, backoff_ms_max=9,
    )  # fmt: skip
    silent = Pool(
        "p", "spread", candidates=2, start_ms=3, lease_ms=4, run_ms_max=5, attempts_max=6, crashes_max=7, backoff_ms=8,
        backoff_ms_max=9,
    )  # fmt: skip
    assert complete("p", PoolDocument(), settings) == silent
    said = complete("p", GOLD, settings)
    assert in_force(said) == to_table(GOLD)
    assert said.match == GOLD.match


@pytest.mark.parametrize(
    ("match", "takes"),
    [
        pytest.param(Match(labels={"zone": "eu"}), True, id="a label"),
        pytest.param(Match(labels={"zone": "us"}), False, id="another value"),
        pytest.param(Match(labels={"rack": ""}), False, id="a label that it has not"),
        pytest.param(Match(pairs=(EN_ZH,)), True, id="a pair"),
        pytest.param(Match(pairs=(EN_ZH, EN_DE)), True, id="all pairs"),
        pytest.param(Match(pairs=(EN_ZH, ("zh", "en"))), False, id="not all pairs"),
        pytest.param(Match(pairs=(("auto", "de"),)), True, id="any language to one that it speaks"),
        pytest.param(Match(pairs=(("auto", "fr"),)), False, id="any language to one that it does not speak"),
        pytest.param(Match(features=("asr",)), True, id="a feature"),
        pytest.param(Match(features=("asr", "gpu")), False, id="not all features"),
        pytest.param(Match(labels={"zone": "eu"}, pairs=(EN_ZH,), features=("tts",)), True, id="some of each"),
        pytest.param(Match(labels={"zone": "eu"}, features=("gpu",)), False, id="a label, but not the feature"),
        pytest.param(Match(tenants=("acme",)), False, id="tenants say nothing of nodes"),
        pytest.param(Match(), False, id="nothing"),
    ],
)
def test_a_rule_takes_the_nodes_that_have_all_that_it_names(match: Match, takes: bool) -> None:
    """One that names neither labels nor pairs nor features takes none."""
    beat = NodeBeat("n1", BOOT, 4, (EN_ZH, EN_DE), ("asr", "tts"), {"zone": "eu", "host": "h1"})
    rules = node_rules({"p": PoolDocument(match=match)})
    assert pool_of(beat, rules) == ("p" if takes else DEFAULT_POOL)


def test_of_several_rules_the_one_that_names_most_takes_the_node() -> None:
    """Of equals the first by its name; what a node says of itself comes before all."""
    two = Match(pairs=(EN_ZH,), labels={"zone": "eu"})
    documents = {
        "d": PoolDocument(match=two),
        "c": PoolDocument(match=two),
        "b": PoolDocument(match=Match(pairs=(EN_ZH,), labels={"zone": "eu"}, features=("gpu",))),
        "a": PoolDocument(match=Match(pairs=(EN_ZH,))),
        "silent": PoolDocument(),
    }
    rules = node_rules(documents)
    assert [rule.pool for rule in rules] == ["b", "c", "d", "a"]
    assert pool_of(NodeBeat("n1", BOOT, 4, (EN_ZH,), labels={"zone": "eu"}), rules) == "c"
    assert pool_of(NodeBeat("n1", BOOT, 4, (EN_ZH,), labels={"zone": "eu"}, pool="x"), rules) == "x"
    assert pool_of(NodeBeat("n1", BOOT, 4), rules) == DEFAULT_POOL
