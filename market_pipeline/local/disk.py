"""Free space and the cost of making a write durable."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

from market_pipeline.errors import LocalStackError

MIB = 1024 * 1024
DEFAULT_MIN_FREE_MB = 500
FULL_PHRASES = ("No space left on device", "ENOSPC", "NOT_ENOUGH_SPACE", "insufficient storage", "Disk quota exceeded")


def free_mb(path: Path) -> int:
    """Return the free megabytes (MiB) of the disk that holds `path`."""
    return shutil.disk_usage(path).free // MIB


def require_free(path: Path, minimum_mb: int) -> None:
    """Refuse to start on a disk that is nearly full: three databases at the limit fail in worse ways.

    Raises:
        LocalStackError: names the free and the needed space.
    """
    free = free_mb(path)
    if free < minimum_mb:
        raise LocalStackError(
            f"the disk of {path} has {free:,} MB free, and the stack needs at least {minimum_mb:,} MB: free some "
            "space, move the folder with --home, or lower the limit with --min-free-mb"
        )


def is_full(error: OSError) -> bool:
    """Tell whether an error means that the disk, or the user's quota on it, is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def says_full(text: str) -> bool:
    """Tell whether a server's log speaks of a full disk."""
    return any(phrase in text for phrase in FULL_PHRASES)


def fsync_ms(folder: Path, rounds: int = 20) -> float:
    """Measure one append of 4 KB and its fsync on the disk of `folder`: the median in milliseconds."""
    path = folder / f".fsync-{os.getpid()}"
    costs = []
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(rounds):
                started = time.perf_counter()
                file.write(b"\0" * 4096)
                os.fsync(file.fileno())
                costs.append((time.perf_counter() - started) * 1000)
    finally:
        path.unlink(missing_ok=True)
    return sorted(costs)[len(costs) // 2]
