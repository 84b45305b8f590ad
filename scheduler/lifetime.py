"""Where and when an object of the SDK may be used: in the event loop that entered it, until it was left.

Its connections belong to that event loop. Used elsewhere they fail in odd ways, or wait for ever.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Literal, NoReturn

from scheduler.errors import InvalidInput


class Lifetime:
    """Of one object, which is entered once.

    Args: what, the object's class, for messages; pid, says which process this is.
    Attributes: state.
    """

    def __init__(self, what: str, pid: Callable[[], int]) -> None:
        self.state: Literal["new", "entered", "left"] = "new"
        self._what = what
        self._pid = pid
        self._entered_pid = 0
        self._thread = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self) -> None:
        """Raises: InvalidInput when it was entered before."""
        if self.state == "entered":
            self._refuse("entering", f"it was entered already: expected one `async with` for each {self._what}")
        if self.state == "left":
            self._refuse("entering", f"it was left: expected a new {self._what}")
        self._loop = self._running_loop("entering")
        self._thread = threading.get_ident()
        self._entered_pid = self._pid()
        self.state = "entered"

    def not_entered(self) -> None:
        """Entering has failed; it can be tried again."""
        self.state = "new"
        self._loop = None

    def leave(self) -> bool:
        """Returns: whether it is to be closed now; not when it was left before.

        Raises: InvalidInput when it is not this event loop's, or was not entered.
        """
        if self.state == "left":
            return False
        self.check("leaving")
        self.state = "left"
        return True

    def check(self, call: str) -> None:
        """Raises: InvalidInput, saying why `call` cannot be made here and now."""
        if self.state == "new":
            self._refuse(call, f"it was not entered: expected `async with {self._what}(...) as ...:` around it")
        if self.state == "left":
            self._refuse(call, f"it was left: expected a new {self._what}")
        if self._pid() != self._entered_pid:
            self._refuse(call, f"this process was forked off after it was entered: expected a {self._what} of its own")
        if self._running_loop(call) is not self._loop:
            if threading.get_ident() != self._thread:
                self._refuse(
                    call,
                    "this is another thread than the one that entered it: expected asyncio.run_coroutine_threadsafe "
                    "with the event loop of that thread",
                )
            self._refuse(
                call,
                "this is another event loop than the one that entered it: expected one asyncio.run around all of its "
                "use",
            )

    def _running_loop(self, call: str) -> asyncio.AbstractEventLoop:
        try:
            return asyncio.get_running_loop()
        except RuntimeError:
            self._refuse(call, "no event loop of asyncio runs here: expected one")

    def _refuse(self, call: str, why: str) -> NoReturn:
        raise InvalidInput(f"{self._what}, {call}: {why}")
