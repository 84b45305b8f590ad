"""The parts of the simulation: a check that cannot fail would show nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import hiredis
import msgspec
import pytest

from scheduler.store.scripts import load_scripts
from tests.simulation.checker import INVARIANTS
from tests.simulation.network import CommandFault, Network, call_of
from tests.simulation.plan import FAULTS, SCENARIOS, Event, Plan, draw, parse_event
from tests.simulation.seeds import Seed, parse_seeds, read_seeds, show_seeds
from tests.simulation.server import Server
from tests.simulation.shrink import minimal
from tests.simulation.world import ORIGIN_S, Process, Spinning, World

# ---- the world -----------------------------------------------------------------------------------------------------

ROOT: Final = Path(__file__).resolve().parents[2]


async def ticks(process: Process, told: list[float], count: int) -> None:
    """Say what time it is, once a second."""
    for _ in range(count):
        await asyncio.sleep(1)
        told.append(process.world.now_s - ORIGIN_S)


def test_time_goes_on_when_nobody_has_anything_to_do() -> None:
    """From timer to timer, and no further than it may."""
    world = World(1)
    told: list[float] = []
    process = Process(world, "a")
    process.start(ticks(process, told, 3))
    assert not world.run(lambda: len(told) == 3, ORIGIN_S + 2.5)
    assert (told, world.now_s) == ([1.0, 2.0], ORIGIN_S + 2.5)
    assert world.run(lambda: len(told) == 3, ORIGIN_S + 10)
    world.close()


def test_a_process_that_is_killed_takes_no_turn_not_even_to_clean_up() -> None:
    """As with SIGKILL."""
    world = World(1)
    cleaned: list[str] = []
    process = Process(world, "a")

    async def main() -> None:
        try:
            await asyncio.sleep(5)
        finally:
            cleaned.append("up")

    process.start(main())
    world.call_at(ORIGIN_S + 1, process.kill)
    world.run(lambda: False, ORIGIN_S + 10)
    assert cleaned == []
    world.close()


@pytest.mark.parametrize(("clock_stops", "times"), [(False, [1.0, 12.0, 13.0]), (True, [1.0, 12.5, 13.5])])
def test_a_process_that_is_suspended_goes_on_later(clock_stops: bool, times: list[float]) -> None:
    """Its timers are overdue then, unless its clock stood still too."""
    world = World(1)
    told: list[float] = []
    process = Process(world, "a")
    process.start(ticks(process, told, 3))
    world.call_at(ORIGIN_S + 1.5, lambda: process.suspend(10.5, clock_stops=clock_stops))
    world.run(lambda: False, ORIGIN_S + 20)
    assert told == times
    world.close()


def test_a_loop_that_spins_is_told() -> None:
    """Callbacks without end at one instant."""
    world = World(1)

    async def main() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    Process(world, "a").start(main())
    with pytest.raises(Spinning):
        world.run(lambda: False, ORIGIN_S + 1)
    world.close()


# ---- the server and the network --------------------------------------------------------------------------------------


def packed(*command: Any) -> bytes:
    """A command on the wire."""
    data: bytes = hiredis.pack_command(command)
    return data


class Line:
    """One process with a connection to one server, and what it was answered."""

    def __init__(self) -> None:
        self.world = World(1)
        self.server = Server(self.world)
        self.network = Network(self.world, self.server)
        self.process = Process(self.world, "p")
        self.answers: list[object] = []

    def send(self, commands: Sequence[Sequence[object]], faults: Sequence[CommandFault] = ()) -> list[object]:
        """Send commands over one connection; an answer, or the name of an error, for each."""
        self.network.wires(self.process).faults += faults
        self.process.start(self._send(commands))
        self.world.run(lambda: len(self.answers) == len(commands), self.world.now_s + 60)
        return self.answers

    async def _send(self, commands: Sequence[Sequence[object]]) -> None:
        reader, writer = await self.network._open(self.network.wires(self.process))
        for command in commands:
            try:
                writer.write(packed(*command))
                async with asyncio.timeout(5):
                    data = await reader.read(1_000)
                self.answers.append(data or "closed")
            except (OSError, TimeoutError) as error:
                self.answers.append(type(error).__name__)
                writer.close()
                reader, writer = await self.network._open(self.network.wires(self.process))
        writer.close()


def test_bytes_take_time_and_a_command_is_answered() -> None:
    """The server's clock is its own."""
    line = Line()
    assert line.send([("PING",), ("SET", "a", "1"), ("GET", "a")]) == [b"+PONG\r\n", b"+OK\r\n", b"$1\r\n1\r\n"]
    assert 0 < line.world.now_s - ORIGIN_S < 0.01
    line.world.close()


@pytest.mark.parametrize(
    ("wire", "answer", "done"),
    [
        ("lost_before", "ConnectionResetError", b"0"),
        ("lost_after", "ConnectionResetError", b"1"),
        ("delayed", "ConnectionResetError", b"0"),
        ("hang", "TimeoutError", b"1"),
        ("late", b":1\r\n", b"1"),
        ("late_reply", b":1\r\n", b"1"),
    ],
)
def test_what_happens_to_a_command(wire: str, answer: object, done: bytes) -> None:
    """Whether the server has done it by the time that its sender hears of it; what is delayed is done later."""
    line = Line()
    fault = CommandFault(ORIGIN_S, "incr", wire, 2.0)  # type: ignore[arg-type]
    line.server.ask("SET", "n", 0)
    assert line.send([("PING",), ("INCR", "n")], [fault]) == [b"+PONG\r\n", answer]
    assert line.server.ask("GET", "n") == done
    line.world.run(lambda: False, line.world.now_s + 5)
    assert line.server.ask("GET", "n") == (b"0" if wire == "lost_before" else b"1")
    line.world.close()


def test_a_read_that_blocks_is_answered_when_something_comes() -> None:
    """Or when its time is over."""
    line = Line()
    other = line.server.connect(lambda reply: None)
    line.world.call_at(ORIGIN_S + 1, line.server.do, other, [b"XADD", b"s", b"*", b"f", b"v"])
    answers = line.send([("XREAD", "BLOCK", 500, "STREAMS", "s", "$"), ("XREAD", "BLOCK", 5_000, "STREAMS", "s", "$")])
    assert answers[0] == b"*-1\r\n"
    assert isinstance(answers[1], bytes)
    assert b"$1\r\nv\r\n" in answers[1]
    line.world.close()


def test_what_the_server_refuses() -> None:
    """Full, or a replica, or without the script."""
    line = Line()
    script = line.server.load_script(b"#!lua flags=allow-oom\nreturn redis.call('SET', KEYS[1], '1')")
    plain = line.server.load_script(b"#!lua\nreturn 1")
    line.server.is_full = True
    commands = [("SET", "a", "1"), ("EVALSHA", script, "1", "b"), ("EVALSHA", plain, "0"), ("EVALSHA", "0" * 40, "0")]
    commands += [("MULTI",), ("GET", "a"), ("EXEC",)]
    found = [str(answer)[2:6] for answer in line.send(commands)]
    assert found == ["-OOM", "+OK\\", "-OOM", "-NOS", "+OK\\", "-OOM", "-EXE"]
    line.world.close()


def test_a_restart_loses_what_came_after_the_data_was_kept() -> None:
    """Or nothing, or everything."""
    server = Server(World(1))
    server.ask("SET", "a", 1)
    server.keep()
    server.ask("SET", "b", 1)
    server.restart()
    assert server.ask("EXISTS", "a", "b") == 2
    server.keep()
    server.ask("DEL", "a")
    server.restart(kept=True)
    assert server.ask("EXISTS", "a", "b") == 2
    server.restart(empty=True)
    assert server.ask("DBSIZE") == 0


def test_a_command_is_called_by_its_script() -> None:
    """So that a fault can wait for it."""
    server = Server(World(1))
    script = load_scripts()["reserve"]
    assert server.load_script(script.source.encode()).decode() == script.sha
    assert call_of(packed("EVALSHA", script.sha, 0)) == "reserve"
    assert call_of(packed("XREAD", "COUNT", 1)) == "xread"


# ---- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", sorted(SCENARIOS))
def test_a_schedule_is_the_same_in_words(scenario: str) -> None:
    """So a seed that failed can be kept as a text."""
    every = draw(7, SCENARIOS[scenario])
    fewer = draw(7, SCENARIOS[scenario], 20)
    other = msgspec.structs.replace(
        fewer, pools="rivals", memory="tight", jobs=fewer.jobs[3:9], events=every.events[:2]
    )
    seeds = [Seed(plan, "open", "lost", "Because.") for plan in (every, fewer, other)]
    assert parse_seeds(show_seeds(seeds)) == seeds


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("seed x mixed open lost", r"the block 'seed x mixed open lost': expected `seed NUMBER SCENARIO open\|mended"),
        ("seed 1 mixd open lost", "scenario = 'mixd': expected one of calm, "),
        ("seed 1 mixed open losst", "invariant = 'losst': expected one of broken, "),
        ("seed 1 mixed open lost\nfleet gold small", "memory = 'small': expected one of roomy, tight"),
        ("seed 1 mixed open lost\njobs a", r"'jobs a': expected `fleet POOLS MEMORY`, or `jobs NUMBER"),
        ("seed 1 mixed open lost\njobs 7 999", "there is no job 999: expected numbers below 120"),
        ("seed 1 mixed open lost\nn1 kill 3", "'n1 kill 3': expected a fault, as in"),
        ("seed 1 mixed open lost\n3.4 n1 explode", "n1 has no fault 'explode'; expected one of cut, delayed, "),
        ("seed 1 mixed open lost\n3.4 n9 kill", "n9 has no fault 'kill'; expected one of manager0, "),
        ("seed 1 mixed open lost\n3.4 n1 kill 3 4", "expected one number at most behind the fault, got '3 4'"),
        ("seed 1 mixed open lost\nseed 2 mixed open lost", "'seed 2 mixed open lost': expected a fault, as in"),
    ],
)
def test_a_list_with_a_mistake(text: str, error: str) -> None:
    """The error names the block, and what was expected."""
    with pytest.raises(ValueError, match=error):
        parse_seeds(f"seed 1 calm mended lost\n  \n{text}\n")


def test_a_line_of_a_schedule() -> None:
    """With and without what is optional."""
    assert parse_event("3.120 n1 late renew 4.2") == Event(3.12, "n1", "late", "renew", 4.2)
    assert parse_event("3.000 server clock -3600") == Event(3.0, "server", "clock", "", -3600.0)
    assert str(parse_event("3.000 all roll")) == "3.000 all roll"


def test_the_page_says_what_each_word_means() -> None:
    """Of what is checked, of scenarios and of faults."""
    page = (ROOT / "docs" / "SIMULATION.md").read_text(encoding="utf-8")
    words = {*INVARIANTS, *SCENARIOS, *(what for known in FAULTS.values() for what in known)}
    assert [word for word in sorted(words) if f"`{word}`" not in page] == []


def test_the_list_can_be_read_and_names_nothing_twice() -> None:
    """tests/simulation/seeds.txt."""
    names = [seed.name for seed in read_seeds()]
    assert len(set(names)) == len(names)


def test_the_shortest_that_still_fails() -> None:
    """Without anything that is not needed."""
    asked: list[int] = []

    def fails(items: Sequence[int]) -> bool:
        asked.append(len(items))
        return {3, 17} <= set(items)

    assert minimal(list(range(40)), fails, lambda count: None) == [3, 17]
    assert len(asked) < 100


def test_plans_differ_by_seed_and_agree_for_one() -> None:
    """Everything is drawn from the seed."""
    one, same, other = (draw(seed, SCENARIOS["mixed"]) for seed in (1, 1, 2))
    assert isinstance(one, Plan)
    assert (one == same, one == other) == (True, False)
