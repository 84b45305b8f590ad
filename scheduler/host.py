"""What a role, a node or a producer takes from the machine that it runs on. All of it is handed in.

A default `Host` is this process on this machine. A simulation hands in another one for each process that it plays, and
so decides what every clock says, what every draw gives, and what becomes of each command.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from random import Random

import msgspec

from scheduler.clock import SYSTEM_CLOCK, Clock
from scheduler.store.connection import Connection
from scheduler.threads import Threads
from scheduler.url import ServerUrl


def process_name() -> str:
    """Where this process runs, for people: `<host>-<pid>`."""
    host = "".join(letter for letter in socket.gethostname() if letter.isalnum() or letter in "-.")[:32] or "host"
    return f"{host}-{os.getpid()}"


class Host(msgspec.Struct, frozen=True):
    """One process and its machine.

    name: of the process, a part of the names of its roles.
    clock: its own, monotonic.
    random: for draws, jitter and backoff; not for ids.
    token_hex: makes ids that nobody else makes, so many bytes as hexadecimal digits.
    threads: makes the threads of a node for plain handlers, from their number and a name.
    pid: says which process this is; after a fork it says another.
    connect: makes a connection, from the server's URL, the patience in milliseconds and the clock.
    """

    name: str = msgspec.field(default_factory=process_name)
    clock: Clock = SYSTEM_CLOCK
    random: Random = msgspec.field(default_factory=Random)
    token_hex: Callable[[int], str] = secrets.token_hex
    threads: Callable[[int, str], Threads] = Threads
    pid: Callable[[], int] = os.getpid
    connect: Callable[[str | ServerUrl, int | None, Clock], Connection] = Connection
