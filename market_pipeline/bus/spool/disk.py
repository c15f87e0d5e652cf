"""The few things that the spool asks of a disk, so that each is durable and each failure has one meaning."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from market_pipeline.bus.spool.record import Scan, scan
from market_pipeline.errors import SpoolError, SpoolFull

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
HINT = "bring NATS back so that it drains, give it room, or raise spool.max_bytes (MARKET_PIPELINE_SPOOL__MAX_BYTES)"
_NAME = re.compile(r".+-\d+-[0-9a-f]{8}", re.DOTALL)


@contextmanager
def translated(where: Path) -> Iterator[None]:
    """Let an error of the system leave the block as one of ours."""
    try:
        yield
    except OSError as error:
        raise spool_error(error, where) from error


def new_name() -> str:
    """Return a name for a folder of this process; `spool_folders` knows it by its form."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def spool_folders(root: Path) -> list[Path]:
    """Return the folders of the spool, by name; what else lies there (lost+found, say) is no affair of ours.

    Raises:
        SpoolError: the root cannot be read.
    """
    with translated(root), suppress(FileNotFoundError, NotADirectoryError), os.scandir(root) as entries:
        return sorted(
            root / entry.name
            for entry in entries
            if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        )
    return []


def listed(path: Path) -> list[Path]:
    """Return what lies in a folder; nothing where there is none.

    Raises:
        SpoolError: it cannot be read.
    """
    with translated(path), suppress(FileNotFoundError, NotADirectoryError):
        return [path / name for name in os.listdir(path)]
    return []


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
    with translated(path):
        return scan(path.read_bytes())


def used_bytes(folder: Path) -> int:
    """Return the bytes of all files of a folder; files that vanish meanwhile don't count.

    Raises:
        SpoolError: some of it cannot be read.
    """
    total = 0
    waiting = [folder]
    while waiting:
        with translated(folder), suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    return total


def require_room(root: Path, size: int, max_bytes: int, min_free_bytes: int) -> None:
    """Make sure that `size` bytes more stay within the limit of all folders together and leave the disk enough.

    Other processes that look at the same moment may each take what is left once: the limit is kept to a write each.
    A folder that cannot be read does not count: better a limit that is kept less exactly than a record that is not.

    Raises:
        SpoolFull: naming the folder, the limit and what to do.
        SpoolError: the disk cannot be asked.
    """
    used = 0
    for folder in spool_folders(root):
        with suppress(SpoolError):
            used += used_bytes(folder)
    if used + size > max_bytes:
        raise SpoolFull(f"the spool {root} is full: it holds {used} of {max_bytes} bytes; {HINT}")
    with translated(root):
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
