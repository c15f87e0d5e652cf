"""What lies in the spool, for those who look from outside: files only, and nothing is changed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from market_pipeline.bus.spool.disk import listed, spool_error, spool_folders, used_bytes
from market_pipeline.bus.spool.folder import ADOPTED, BAD, LOCK, OWNER, Owner, segments_of
from market_pipeline.bus.spool.record import RECORD_HEAD, SEGMENT_HEAD, read_head, read_segment_head
from market_pipeline.errors import SpoolError
from market_pipeline.file_locks import is_held


@dataclass(frozen=True, slots=True)
class FolderStatus:
    """What one folder holds.

    name, pid, host: who made it; empty and 0 where that cannot be read. locked: a process owns or drains it now.
    adopted: somebody else than its maker has, or had it. adoptable: it holds records and nobody has it: the next
    publisher or bridge drains it. records: that wait, as far as they follow each other undamaged. oldest_age_s: of the
    oldest; None without records. bad: pieces set aside. error: why nothing else is known of it; empty where
    it can be read.
    """

    path: Path
    name: str
    pid: int
    host: str
    locked: bool
    adopted: bool
    adoptable: bool
    bytes: int
    segments: int
    records: int
    oldest_age_s: float | None
    bad: int
    error: str = ""


def spool_status(root: Path) -> list[FolderStatus]:
    """Return what each folder of the spool holds, by path; empty where there is no spool.

    Raises:
        SpoolError: the spool cannot be read at all.
    """
    return [_status(each) for each in spool_folders(root)]


def _status(path: Path) -> FolderStatus:
    try:
        owner = msgspec.json.decode((path / OWNER).read_bytes(), type=Owner)
    except (OSError, msgspec.MsgspecError):
        owner = Owner(0, "", "", 0.0)
    try:
        return _read(path, owner)
    except (OSError, SpoolError) as error:
        why = str(spool_error(error, path) if isinstance(error, OSError) else error)
        return FolderStatus(path, owner.name, owner.pid, owner.host, False, False, False, 0, 0, 0, None, 0, why)


def _read(path: Path, owner: Owner) -> FolderStatus:
    segments = segments_of(path)
    records, oldest_ms = 0, None
    for segment in segments:
        count, first_ms = _count(segment)
        records += count
        oldest_ms = first_ms if oldest_ms is None else oldest_ms
    locked = is_held(path / LOCK)
    return FolderStatus(
        path=path,
        name=owner.name,
        pid=owner.pid,
        host=owner.host,
        locked=locked,
        adopted=(path / ADOPTED).exists(),
        adoptable=bool(segments) and not locked,
        bytes=used_bytes(path),
        segments=len(segments),
        records=records,
        oldest_age_s=None if oldest_ms is None else max(0.0, time.time() - oldest_ms / 1000),
        bad=len(listed(path / BAD)),
    )


def _count(segment: Path) -> tuple[int, int | None]:
    """Count records by stepping from head to head, without reading what is between; and the first one's time."""
    count, first_ms = 0, None
    try:
        with segment.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            salt, _ = read_segment_head(file.read(SEGMENT_HEAD))
            at = SEGMENT_HEAD
            while salt is not None and at < size:
                file.seek(at)
                head = read_head(file.read(RECORD_HEAD), salt)
                if head is None or at + head.size > size:
                    break
                count += 1
                first_ms = head.spooled_ms if first_ms is None else first_ms
                at += head.size
    except FileNotFoundError:
        pass  # drained meanwhile
    return count, first_ms
