"""Where the log of a command goes whose standard output is an answer."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def log_to_stderr(level: int = logging.WARNING) -> Iterator[None]:
    """Keep the standard output for what was asked for: of the log what has at least `level` goes to the other one."""
    import structlog

    before = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        yield
    finally:
        structlog.configure(**before)
