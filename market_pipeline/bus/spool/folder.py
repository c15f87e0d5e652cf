"""One owner's folder: its lock, its segments by state, and how another takes it over."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from market_pipeline.bus.spool.disk import fsync_folder, listed, new_name, spool_error, spool_folders, translated
from market_pipeline.errors import SpoolError
from market_pipeline.file_locks import is_held
from market_pipeline.settings import Settings

log = structlog.get_logger(__name__)

LOCK, OWNER = "lock", "owner.json"
ADOPTED = "adopted"
"""A file that is there once somebody else than the owner has had the folder: whoever holds its lock is draining it."""
LOCK_ATTEMPTS, LOCK_PAUSE_S = 5, 0.01
WRITING, READY, DRAINING, GIVING_UP, BAD = "writing", "ready", "draining", "giving_up", "bad"
STATES = (WRITING, READY, DRAINING, GIVING_UP)
SUFFIX = ".seg"
LOST = ".lost"
"""Before the suffix: the segment stands for one that was given up, and says what was in it."""


class Owner(msgspec.Struct, frozen=True):
    """Who made a folder."""

    pid: int
    host: str
    name: str
    since: float


def spool_root(settings: Settings) -> Path:
    """Return where all folders lie: the setting, else `<home>/spool`."""
    return (settings.spool.folder or settings.home / "spool").expanduser().absolute()


class SpoolFolder:
    """A folder whose lock is ours, from `create` or `adopt` until `release`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, root: Path, name: str) -> SpoolFolder:
        """Make a folder of our own and lock it; `name` is shown to those who look at it.

        Raises:
            SpoolError, SpoolFull: the disk does not take it.
        """
        fd = None
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            while True:
                path = root / new_name()
                path.mkdir(mode=0o700)
                # Whoever looks for folders to adopt may have been quicker: then it removes this one, which is empty.
                fd = _lock(path)
                if fd is not None:
                    break
            for state in (*STATES, BAD):
                (path / state).mkdir(mode=0o700)
            owner = Owner(os.getpid(), socket.gethostname(), name, time.time())
            (path / OWNER).write_bytes(msgspec.json.encode(owner))
            fsync_folder(path)
            fsync_folder(root)
        except OSError as error:
            if fd is not None:
                os.close(fd)
            raise spool_error(error, root) from error
        return cls(path, fd)

    @classmethod
    def adopt(cls, path: Path) -> SpoolFolder | None:
        """Take a folder over whose owner is gone; None when its lock is held, or it is gone too.

        Raises:
            SpoolError: it cannot be opened.
        """
        with translated(path):
            fd = _lock(path)
            if fd is None:
                return None
            try:
                (path / ADOPTED).touch()
            except OSError:
                os.close(fd)
                raise
        return cls(path, fd)

    def segments(self) -> list[Path]:
        """Return the segments, oldest first: their names count up, whatever their state."""
        return segments_of(self.path)

    def new_segment(self, number: int) -> Path:
        """Return where the segment of this number is written."""
        return self.path / WRITING / f"{number:012d}{SUFFIX}"

    def move(self, segment: Path, state: str) -> Path:
        """Move a segment to another state, durably."""
        if segment.parent.name == state:
            return segment
        target = self.path / state / segment.name
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            segment.rename(target)
            fsync_folder(target.parent)
            fsync_folder(segment.parent)
        except OSError as error:
            raise spool_error(error, self.path) from error
        return target

    def remove(self, segment: Path) -> None:
        """Forget a segment for good: everything of it is published, set aside or given up."""
        try:
            segment.unlink(missing_ok=True)
            fsync_folder(segment.parent)
        except OSError as error:
            raise spool_error(error, self.path) from error

    def set_aside(self, name: str, data: bytes) -> Path:
        """Keep bytes that are no record for a person to look at; doing it again changes nothing."""
        target = self.path / BAD / name
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            with target.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fsync_folder(target.parent)
        except OSError as error:
            raise spool_error(error, self.path) from error
        return target

    def release(self) -> None:
        """Give the lock up; a folder that holds nothing, not even something bad, is removed first."""
        fd, self._fd = self._fd, -1  # at once: a drain that is ended may release what a thread of it is releasing
        if fd < 0:
            return
        try:
            if not self.segments() and not listed(self.path / BAD):
                # The lock goes last and by itself: who waits for it sees that it is no longer this folder's.
                for state in (*STATES, BAD):
                    with suppress(FileNotFoundError):
                        (self.path / state).rmdir()
                shutil.rmtree(self.path)
        except (OSError, SpoolError) as error:
            log.warning("spool_folder_not_removed", folder=str(self.path), error=str(error))
        finally:
            os.close(fd)


def adoptable(root: Path) -> Iterator[SpoolFolder]:
    """Adopt, one after another, the folders whose lock is free; what holds nothing is removed on the way.

    Raises:
        SpoolError: the root cannot be read; a folder that cannot is passed over.
    """
    for path in spool_folders(root):
        try:
            if not segments_of(path) and listed(path / BAD):
                continue
            folder = SpoolFolder.adopt(path)
        except SpoolError as error:
            log.warning("spool_folder_not_adopted", folder=str(path), error=str(error))
            continue
        if folder is not None and not segments_of(path):
            folder.release()
        elif folder is not None:
            yield folder


def segments_of(path: Path) -> list[Path]:
    """Return the segments of any folder, oldest first; reads names only.

    Raises:
        SpoolError: it cannot be read.
    """
    found = [each for state in STATES for each in listed(path / state) if each.suffix == SUFFIX]
    return sorted(found, key=lambda each: each.name)


def left_behind(path: Path) -> bool:
    """Say whether a folder holds segments whose owner is gone, be they still to be adopted or just being drained.

    Raises:
        SpoolError: it cannot be read.
    """
    with translated(path):
        for attempt in range(LOCK_ATTEMPTS):
            if attempt:
                time.sleep(LOCK_PAUSE_S)  # who has just locked it to adopt it says so a moment later
            if not segments_of(path):
                return False
            if (path / ADOPTED).exists() or not is_held(path / LOCK):
                return True
    return False


def _lock(path: Path) -> int | None:
    """Lock a folder; None when another has it, or removed it meanwhile."""
    try:
        fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    for attempt in range(LOCK_ATTEMPTS):  # longer than the moment in which `is_held` looks
        if attempt:
            time.sleep(LOCK_PAUSE_S)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held, named = os.fstat(fd), os.stat(path / LOCK)
        except BlockingIOError:
            continue
        except FileNotFoundError:
            break
        except OSError:
            os.close(fd)
            raise
        if (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino):
            return fd
        break
    os.close(fd)
    return None
