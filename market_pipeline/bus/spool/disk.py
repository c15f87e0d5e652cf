"""The few things that the spool asks of a disk, so that each is durable and each failure has one meaning."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from market_pipeline.bus.spool.record import Scan, scan
from market_pipeline.errors import SpoolError, SpoolFull

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
HINT = "bring NATS back so that it drains, give it room, or raise spool.max_bytes (MARKET_PIPELINE_SPOOL__MAX_BYTES)"


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write everything; a disk that takes only a part takes the rest or says why not."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def read_segment(path: Path) -> Scan:
    """Read a segment.

    Raises:
        SpoolError: the disk fails.
    """
    try:
        return scan(path.read_bytes())
    except OSError as error:
        raise spool_error(error, path) from error


def used_bytes(root: Path) -> int:
    """Return the bytes of all files of all folders; files that vanish meanwhile don't count."""
    total = 0
    waiting = [root]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


def require_room(root: Path, size: int, max_bytes: int, min_free_bytes: int) -> None:
    """Make sure that `size` bytes more stay within the limit of all folders together and leave the disk enough.

    Other processes that look at the same moment may each take what is left once: the limit is kept to a write each.

    Raises:
        SpoolFull: naming the folder, the limit and what to do.
    """
    used = used_bytes(root)
    if used + size > max_bytes:
        raise SpoolFull(f"the spool {root} is full: it holds {used} of {max_bytes} bytes; {HINT}")
    free = shutil.disk_usage(root).free
    if free - size < min_free_bytes:
        raise SpoolFull(
            f"the spool {root} has to leave {min_free_bytes} bytes of its disk to others, and only {free} are free: "
            "free some, or lower spool.min_free_bytes (MARKET_PIPELINE_SPOOL__MIN_FREE_BYTES)"
        )


def spool_error(error: OSError, where: Path) -> SpoolError:
    """Turn the system's error into ours."""
    reason = os.strerror(error.errno).lower() if error.errno else str(error)
    if error.errno in FULL:
        return SpoolFull(f"the disk takes no more of the spool {where} ({reason}): {HINT}")
    return SpoolError(f"the spool {where} cannot be used ({reason}): mend it or set spool.folder")
