"""Secrets in files: mode 0600, made when absent, never on a command line."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from market_pipeline.errors import SettingsError


def read_secret(path: Path) -> str:
    """Return the secret in a file. Raises SettingsError when others may read it, or when it is empty."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise SettingsError(f"{path} has mode {mode:04o}: others may read it; run chmod 600 on it")
    secret = path.read_text().strip()
    if not secret:
        raise SettingsError(f"{path} is empty: delete it, and a new secret is made")
    return secret


def read_or_make_secret(path: Path) -> str:
    """Return the secret in a file, making file and secret when there is none."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return read_secret(path)
    secret = secrets.token_hex(16)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
    return secret
