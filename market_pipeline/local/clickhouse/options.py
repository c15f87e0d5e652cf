"""What a server is started with, and what of it can be refused before anything is opened."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
from dataclasses import dataclass, field
from pathlib import Path

from market_pipeline.errors import LocalStackError


@dataclass(frozen=True)
class Limits:
    """What one server gives its clients: `slots` statements at a time, bytes a body, seconds between two pieces."""

    slots: int = 32
    max_body: int = 512 << 20
    receive_timeout: float = 300.0


def half_of_memory() -> int:
    """Return half of the machine's memory in bytes: the other half is for the rest of the local stack."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@dataclass(frozen=True)
class Options:
    """How one server runs.

    `path` is the folder of the data, `port` 0 any free one. `max_memory` bounds the engine in bytes,
    `max_execution_time` one statement in seconds (a request may override it). `ready_file` receives port and pid as
    JSON once the server answers. `min_free` are the bytes of disk without which it does not start.
    """

    path: Path
    password_file: Path
    port: int = 8123
    host: str = "127.0.0.1"
    user: str = "default"
    ready_file: Path | None = None
    lock_fd: int | None = None
    die_with_parent: bool = False
    limits: Limits = field(default_factory=Limits)
    max_memory: int = field(default_factory=half_of_memory)
    max_execution_time: int = 600
    min_free: int = 128 << 20
    compress: bool = False


def listen(host: str, port: int) -> socket.socket:
    """Return a socket bound to a loopback address; raise LocalStackError for any other and for a port in use."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise LocalStackError(f"cannot listen on {host}: {error.strerror}") from None
    if not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise LocalStackError(
            f"refusing to listen on {host}: only loopback addresses are allowed, because whoever can query this server "
            "can read and write files with its rights; to reach it from elsewhere use an SSH tunnel"
        )
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(2048)  # a port shared by two sockets that are bound only would pass unseen
    except OSError as error:
        bound.close()
        raise LocalStackError(
            f"cannot listen on {host}:{port}: {error.strerror}; stop what uses it or choose another --port"
        ) from None
    return bound


def prepare_folder(path: Path, min_free: int) -> Path:
    """Make the folder of the data, readable by its owner only, and return its real path.

    Raises LocalStackError where it cannot be made or written, where the disk is nearly full, and where it holds a
    file that would configure the engine.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = path.resolve(strict=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise LocalStackError(f"cannot use the folder {path}: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise LocalStackError(f"cannot use the folder {folder}: no right to write there")
    if "?" in str(folder):
        raise LocalStackError(f"cannot use the folder {folder}: chDB takes what follows a '?' for options")
    if free < min_free:
        raise LocalStackError(
            f"the disk of {folder} is full: {free >> 20} MiB free, {min_free >> 20} MiB needed; free some space first"
        )
    for name in ("config.xml", "config.yaml", "config.yml"):
        if (folder / name).exists():
            raise LocalStackError(f"{folder / name} would configure the engine: move it elsewhere")
    return folder
