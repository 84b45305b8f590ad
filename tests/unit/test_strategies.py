"""Strategies: each name has a function and a sentence, and whatever lists them lists all."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Final, get_type_hints

import msgspec
import pytest
from click.testing import CliRunner

from scheduler.cli.pools import pools
from scheduler.config import DEFAULTS, check_settings
from scheduler.errors import InvalidConfig
from scheduler.management.pools import parse_file
from scheduler.protocol.snapshot import STRATEGIES, Pool, Snapshot, decode_snapshot, encode_snapshot
from scheduler.runtime.placement import strategies
from scheduler.texts import choice

ROOT: Final = Path(__file__).resolve().parents[2]
NAMED: Final = re.compile(r"`([a-z_]+)`")


def functions() -> dict[str, object]:
    """The functions of the module, by name."""
    return {
        name: function
        for name, function in inspect.getmembers(strategies, inspect.isfunction)
        if function.__module__ == strategies.__name__
    }


def rows(page: str, first_cell: str) -> list[str]:
    """The lines of tables of a page whose first cell has this text."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(f"| {first_cell} |")]


def test_every_strategy_is_the_function_of_its_name() -> None:
    """And every function of the module is one."""
    assert functions() == strategies.FUNCTIONS
    assert list(strategies.FUNCTIONS) == list(STRATEGIES)


def test_all_strategies_are_called_alike() -> None:
    """They take the same arguments; a name with an underscore is one that is not looked at."""
    signatures = {
        name: [
            (parameter.lstrip("_"), hint)
            for parameter, hint in get_type_hints(function).items()
            if parameter.lstrip("_") not in ("", "last")
        ]
        for name, function in functions().items()
    }
    first, *others = signatures.values()
    assert all(signature == first for signature in others), signatures


@pytest.mark.parametrize("name", STRATEGIES)
def test_settings_pool_files_and_snapshots_take_every_strategy(name: str) -> None:
    """The type and both checks follow from the list."""
    settings = msgspec.convert({**msgspec.structs.asdict(DEFAULTS), "strategy": name}, type(DEFAULTS))
    assert check_settings(settings).strategy == name
    assert parse_file({"pools": {"gold": {"strategy": name}}})["gold"].strategy == name
    snapshot = Snapshot(1, pools=(Pool("gold", strategy=settings.strategy),))
    assert decode_snapshot(encode_snapshot(snapshot)) == snapshot


def test_a_refusal_names_all_of_them() -> None:
    """Of a setting and of a pool file."""
    with pytest.raises(InvalidConfig, match=f"expected {choice(STRATEGIES)}"):
        parse_file({"pools": {"gold": {"strategy": "random"}}})
    with pytest.raises(InvalidConfig, match=f"expected {choice(STRATEGIES)}"):
        check_settings(msgspec.structs.replace(DEFAULTS, strategy="random"))


def test_the_command_line_explains_all_of_them() -> None:
    """`scheduler pools apply --help`, a line each."""
    done = CliRunner().invoke(pools, ["apply", "--help"])
    lines = [line.split(maxsplit=1) for line in done.output.splitlines()]
    assert [name_and_sentence for name_and_sentence in STRATEGIES.items() if [*name_and_sentence] not in lines] == []


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_architecture_has_the_sentence_of_every_strategy(name: str) -> None:
    """In its table of strategies; more may follow."""
    (row,) = rows("docs/ARCHITECTURE.md", f"`{name}`")
    assert row.split("|")[2].strip().startswith(STRATEGIES[name])


@pytest.mark.parametrize(
    ("page", "count"),
    [
        pytest.param("docs/POOLS.md", 1, id="the fields of a pool"),
        pytest.param("docs/SETTINGS.md", 1, id="the settings"),
        pytest.param("docs/PROTOCOL_MANAGEMENT.md", 1, id="the pools of the protocol"),
    ],
)
def test_tables_of_fields_name_every_strategy(page: str, count: int) -> None:
    """In the row of the field `strategy`."""
    named = [NAMED.findall(row) for row in rows(page, "`strategy`")]
    complete = [words for words in named if set(STRATEGIES) <= set(words)]
    assert len(complete) == count
