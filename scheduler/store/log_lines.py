"""Log lines of this package, made fit to be read wherever they go: ids, reasons and the words of servers are in them.

Who runs a node or a producer in a program of their own logs in a way of their own, which this leaves alone: it looks at
the records of our loggers only.
"""

from __future__ import annotations

import logging
from typing import Final

from scheduler.visible import HAS_LINES, visible, visible_lines

_PACKAGE: Final = "scheduler"


class _Visible(logging.Filter):
    """Lets every record pass. One that would do more than be read becomes a text without arguments."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change a record where that is needed."""
        try:
            message = record.getMessage()
        except Exception:
            return True  # the handler tells that its arguments are wrong
        if not message.isprintable():
            shown = visible_lines if getattr(record, HAS_LINES, False) else visible
            record.msg, record.args = shown(message), None
        if record.exc_info and not record.exc_text:
            traceback = _FORMATTER.formatException(record.exc_info)
            if visible_lines(traceback) != traceback:
                record.exc_text = visible_lines(traceback)
        return True


_FORMATTER: Final = logging.Formatter()
_VISIBLE: Final = _Visible()


def keep_visible() -> None:
    """See to it for all loggers of this package that there are. Does nothing the second time."""
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and f"{name}.".startswith(f"{_PACKAGE}."):
            logger.addFilter(_VISIBLE)
