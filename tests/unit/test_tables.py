"""Tables at every width."""

from __future__ import annotations

import pytest

from scheduler.cli.tables import Column, add_row, new_table, print_pairs, print_parts, some

COLUMNS: tuple[Column, ...] = ("node", "pool", ("used", "right"), ("reason", "left"), "features")
LONG = "a-node-with-a-name-of-some-length"


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """A table of two rows."""
    table = new_table(*COLUMNS, keep=("node", "reason"))
    add_row(table, LONG, "a-pool-with-a-long-name", 12, "ready", "asr tts")
    add_row(table, "n2", "池", 3, "draining\n\x1b[1m", "")
    print_parts(table)
    return capsys.readouterr().out.splitlines()


def test_a_pipe_gets_everything(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In columns, whose letters may be two wide; nothing in a cell is obeyed."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert printed(capsys) == [
        "node                               pool                     used  reason             features",
        f"{LONG}  a-pool-with-a-long-name    12  ready              asr tts",
        r"n2                                 池                          3  draining\n\x1b[1m",
    ]
    assert some(["en:zh"] * 9, 10) == " ".join(["en:zh"] * 9)


@pytest.mark.parametrize(
    ("columns", "heads"),
    [
        (90, ["node", "pool", "used", "reason", "features"]),
        (73, ["node", "pool", "used", "reason"]),
        (62, ["node", "pool", "reason"]),
        (40, ["node", "reason"]),
        (1, ["node", "reason"]),
    ],
)
def test_name_and_state_stay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int, heads: list[str]
) -> None:
    """Texts are cut, then columns are left out from the right."""
    monkeypatch.setenv("COLUMNS", str(columns))
    head, first, second = printed(capsys)
    assert head.split() == heads
    assert (first.split()[0], "ready" in first.split()) == (LONG, True)
    assert r"draining\n\x1b[1m" in second
    assert columns < 60 or max(map(len, (head, first, second))) <= columns


def test_pairs_are_folded_between_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An id is not, and what is longer than an id is broken anywhere."""
    monkeypatch.setenv("COLUMNS", "20")
    print_pairs([("job", LONG), ("why", "it failed three times"), ("result", "x" * 130), ("lease_ms", "5", "default")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"job       {LONG}"
    assert lines[1].startswith("why       it")
    assert " ".join(" ".join(lines).split()).count("x") == 130
    assert lines[-1].split() == ["lease_ms", "5", "default"]
