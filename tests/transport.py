"""What a connection within one process answers to asyncio's streams, wherever its bytes go."""

from __future__ import annotations

import asyncio
from typing import Any


class InProcessTransport(asyncio.Transport):
    """Nothing is buffered, and whoever reads is never too slow."""

    def get_write_buffer_size(self) -> int:
        """Bytes that are not sent yet: none."""
        return 0

    def pause_reading(self) -> None:
        """Not needed."""

    def resume_reading(self) -> None:
        """Not needed."""

    def get_extra_info(self, name: Any, default: Any = None) -> Any:
        """There is no socket."""
        return default
