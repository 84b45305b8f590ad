"""A session-affine, capacity-exact job scheduler on Redis or Valkey streams.

    from scheduler import Job, Node, Producer, Reject, Retry, server_url

These names are the public API, with the errors of scheduler.errors. Each is imported at its first use, so that
`import scheduler` alone, as the command line begins, loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scheduler.errors import Reject, Retry
    from scheduler.node.handlers import Job
    from scheduler.node.node import Node
    from scheduler.producer import Producer
    from scheduler.server.location import server_url

__all__ = ["Job", "Node", "Producer", "Reject", "Retry", "server_url"]
__version__ = "0.1.0"

if not TYPE_CHECKING:  # a type checker would take it for every name that there is not
    _HOMES = {
        "Job": "scheduler.node.handlers",
        "Node": "scheduler.node.node",
        "Producer": "scheduler.producer",
        "Reject": "scheduler.errors",
        "Retry": "scheduler.errors",
        "server_url": "scheduler.server.location",
    }

    def __getattr__(name: str) -> object:
        import importlib

        if name not in _HOMES:
            raise AttributeError(f"module 'scheduler' has no attribute {name!r}")
        return getattr(importlib.import_module(_HOMES[name]), name)
