"""An own clock that goes only when it is told to."""

from __future__ import annotations

import pytest

from scheduler.clock import Clock, ServerTime


class HandClock(Clock):
    """Begins at a second. Handed to a role in the place of the machine's clock; the server's goes as ever."""

    def __init__(self) -> None:
        self.now_ms = 1_000.0

    def ms(self) -> float:
        return self.now_ms

    def us(self) -> int:
        return round(self.now_ms * 1000)

    def go(self, ms: float) -> None:
        """So much later."""
        self.now_ms += ms


def hand_clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """One beside which the server's clock seems to go as it should: nobody takes the difference for a step."""
    monkeypatch.setattr(ServerTime, "told", lambda *_: 0.0)
    return HandClock()
