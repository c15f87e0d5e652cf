"""One server a folder: a lock that names its holder.

chDB locks its folder too, but its error for a second process says nothing of the first.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from market_pipeline.errors import LocalStackError

LOCK_FILE = "server.lock"


class FolderLock:
    """The lock of a folder, held until `release` or the end of the process (and of whoever shares its descriptor).

    The lock file holds the pid of the holder. It stays when the lock is released, because deleting it would let two
    processes lock two files of one name.
    """

    def __init__(self, folder: Path, *, inherited: int | None = None) -> None:
        """Take the lock; `inherited` is a descriptor of the same file that a supervisor has locked already.

        Raises LocalStackError with the pid of the holder where another process has it.
        """
        self.file = folder / LOCK_FILE
        self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if inherited is not None:
            self._adopt(inherited)
        try:
            # For a lock that came by inheritance this changes nothing: it belongs to the open file, not the process.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self.file.read_text(encoding="utf-8", errors="replace").strip()
            os.close(self._descriptor)
            who = f"process {holder}" if holder.isdigit() else "another process"
            raise LocalStackError(
                f"{who} already serves the folder {folder}: use that server, stop it, or choose another folder"
            ) from None
        # Written by name, since an inherited descriptor may be open for reading only.
        self.file.write_text(f"{os.getpid()}\n", encoding="utf-8")

    def _adopt(self, inherited: int) -> None:
        """Go on with a supervisor's descriptor if it is one of this very file; keep any other open beside it."""
        try:
            status = os.fstat(inherited)
        except OSError:
            os.close(self._descriptor)
            raise LocalStackError(f"--lock-fd {inherited} is no open descriptor of this process") from None
        os.set_inheritable(inherited, False)
        if os.path.samestat(status, os.fstat(self._descriptor)):
            os.close(self._descriptor)
            self._descriptor = inherited

    def release(self) -> None:
        """Give the lock back and forget the pid."""
        self.file.write_text("", encoding="utf-8")
        os.close(self._descriptor)
