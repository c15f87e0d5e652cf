"""The password of the server, in a file that only its owner can read."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from market_pipeline.errors import LocalStackError


def read_or_create(file: Path) -> str:
    """Return the password in a file; write a random one first where there is no file.

    A password is required because whoever can query can also read and write files with this process's rights, by
    file() and url(). Raises LocalStackError for a file that others can read, that is empty or no regular file.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError:
        _create(file)
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise LocalStackError(f"cannot read the password file {file}: {error.strerror}") from None
    with open(descriptor, encoding="utf-8") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise LocalStackError(f"the password file {file} is not a regular file")
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            raise LocalStackError(f"the password file {file} is open to others (mode {mode:04o}): chmod 600 {file}")
        password = opened.read().strip("\r\n")
    if not password:
        raise LocalStackError(f"the password file {file} is empty: delete it, and a password is generated")
    return password


def _create(file: Path) -> None:
    """Write the file under another name first: a reader never sees it empty, and two writers agree on one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=file.name)  # mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as opened:
            opened.write(secrets.token_urlsafe(24) + "\n")
            opened.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):  # another process was faster
            os.link(name, file)
    finally:
        os.unlink(name)
