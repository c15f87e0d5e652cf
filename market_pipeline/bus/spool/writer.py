"""Writing segments: nothing counts as kept before its bytes are on disk, and a failed write leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import structlog

from market_pipeline.bus.spool.disk import fsync_folder, require_room, spool_error, translated, write_all
from market_pipeline.bus.spool.folder import DRAINING, GIVING_UP, LOST, READY, SUFFIX, SpoolFolder
from market_pipeline.bus.spool.record import SALT_BYTES, SEGMENT_HEAD, SpoolRecord, encode_record, segment_head
from market_pipeline.errors import SpoolError
from market_pipeline.settings import SpoolSettings

log = structlog.get_logger(__name__)


class SegmentWriter:
    """Append records to one segment after another; safe to call from several threads."""

    def __init__(self, root: Path, name: str, settings: SpoolSettings) -> None:
        """Prepare; the folder is made with the first record."""
        self._root, self._name, self._settings = root, name, settings
        # Steps of an eighth of the limit at most: room is given back, and given up, by whole segments.
        self.segment_bytes = min(settings.segment_bytes, max(64 * 1024, settings.max_bytes // 8))
        self._lock = threading.Lock()
        self._folder: SpoolFolder | None = None
        self._number = 0
        self._path: Path | None = None
        self._fd = -1
        self._salt = b""
        self._good = 0  # bytes of the segment that are on disk and whole

    @property
    def folder(self) -> Path | None:
        """The folder, once there is one."""
        return None if self._folder is None else self._folder.path

    def write(self, records: Sequence[SpoolRecord]) -> None:
        """Append records and force them to disk together: all of them are kept, or none.

        Raises:
            SpoolFull: there is no room.
            SpoolError: the disk fails.
        """
        with self._lock:
            with translated(self._root):
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            salt = self._salt if self._fd >= 0 else secrets.token_bytes(SALT_BYTES)
            data = b"".join(encode_record(record, salt) for record in records)
            require_room(self._root, len(data) + SEGMENT_HEAD, self._settings.max_bytes, self._settings.min_free_bytes)
            try:
                if self._fd < 0:
                    self._begin(salt)
                write_all(self._fd, data)
                os.fsync(self._fd)
            except OSError as error:
                self._abandon()
                raise spool_error(error, self._root) from error
            self._good += len(data)
            if self._good >= self.segment_bytes:
                self._seal()

    def next_to_drain(self) -> tuple[SpoolFolder, Path] | None:
        """Take the oldest segment to drain it; None when there is none."""
        return self._take(DRAINING)

    def next_to_give_up(self) -> tuple[SpoolFolder, Path] | None:
        """Take the oldest segment that nobody drains, to give it up; None when there is none."""
        return self._take(GIVING_UP)

    def replace(self, segment: Path, records: Sequence[SpoolRecord]) -> None:
        """Forget a segment, once the records that tell of its loss are on disk in its place."""
        with self._lock:
            if self._folder is None:
                return
            salt = secrets.token_bytes(SALT_BYTES)
            data = segment_head(salt) + b"".join(encode_record(record, salt) for record in records)
            told = segment.with_name(f"{segment.stem}{LOST}{SUFFIX}")
            try:
                if records:
                    with translated(self._root):
                        fd = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                        try:
                            write_all(fd, data)
                            os.fsync(fd)
                        finally:
                            os.close(fd)
                    self._folder.move(told, READY)
            except SpoolError:
                with suppress(OSError):
                    told.unlink(missing_ok=True)  # a part of it says nothing
                raise
            self._folder.remove(segment)

    def put_back(self, segment: Path) -> None:
        """Let a segment be drained that was to be given up, and could not be."""
        with self._lock:
            if self._folder is None:
                return
            try:
                with translated(segment):
                    if segment.exists():
                        self._folder.move(segment, READY)
            except SpoolError as error:  # the reason why it was not given up is what the caller hears
                log.warning("spool_segment_not_put_back", segment=str(segment), error=str(error))

    def close(self) -> None:
        """End the segment and give the folder up: to whoever adopts it, if anything is in it."""
        with self._lock:
            if self._folder is None:
                return
            try:
                self._seal()
            finally:
                self._folder.release()
                self._folder = None

    def _take(self, state: str) -> tuple[SpoolFolder, Path] | None:
        other = {DRAINING, GIVING_UP} - {state}
        with self._lock:
            if self._folder is None:
                return None
            for segment in self._folder.segments():
                if segment.parent.name in other or (state == GIVING_UP and segment.stem.endswith(LOST)):
                    continue
                if segment == self._path:
                    self._seal()
                    segment = self._folder.path / READY / segment.name
                return self._folder, self._folder.move(segment, state)
            return None

    def _begin(self, salt: bytes) -> None:
        if self._folder is None:
            self._folder = SpoolFolder.create(self._root, self._name)
        self._number += 1
        path = self._folder.new_segment(self._number)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._path, self._salt, self._good = path, salt, 0
        write_all(self._fd, segment_head(salt))
        fsync_folder(path.parent)
        self._good = SEGMENT_HEAD

    def _seal(self) -> None:
        """End the segment of now, if there is one; what was never acknowledged is cut off."""
        if self._fd < 0:
            return
        path, fd, good = self._path, self._fd, self._good
        assert path is not None
        assert self._folder is not None
        self._path, self._fd, self._good = None, -1, 0
        with translated(self._folder.path):
            os.close(fd)
        if good > SEGMENT_HEAD:
            self._folder.move(path, READY)
        else:
            self._folder.remove(path)

    def _abandon(self) -> None:
        """After a failed write: cut what was written of it, and go on in a new segment.

        After a failed fsync the system may have forgotten the pages it could not write, so nothing more is appended
        behind them. Where even cutting fails, the reader cuts: the rest is torn, and nobody was told it is kept.
        """
        if self._fd < 0:
            return
        with suppress(OSError):
            os.ftruncate(self._fd, self._good)
            os.fsync(self._fd)
        try:
            self._seal()
        except Exception as error:  # the reason for the write's failure is what the caller hears
            log.warning("spool_segment_not_sealed", folder=str(self._root), error=str(error))
