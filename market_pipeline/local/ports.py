"""Loopback ports: chosen once, kept in `run/ports.json`, checked before each start."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import psutil

from market_pipeline.errors import LocalStackError
from market_pipeline.local.layout import Home, write_private

PORT_NAMES = ("nats", "postgres", "clickhouse", "simulator", "dagster-webserver", "dagster-code")
_FIRST, _LAST = 15_000, 32_767
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOOPBACK = "127.0.0.1"


def ensure_ports(home: Home, names: Iterable[str] = PORT_NAMES, *, repick_taken: bool = False) -> dict[str, int]:
    """Return the stack's ports, choosing those that it doesn't have yet; with `repick_taken` also those in use.

    Raises:
        LocalStackError: `run/ports.json` is damaged.
    """
    kept = _read(home)
    ports = {name: port for name, port in kept.items() if not (repick_taken and is_taken(port))}
    for name in names:
        if name not in ports:
            ports[name] = _choose(set(ports.values()))
    if ports != kept:
        write_private(home.ports_file, json.dumps(ports, indent=2) + "\n")
    return ports


def check_free(home: Home, ports: dict[str, int], names: Iterable[str]) -> None:
    """Refuse to start beside a foreign process on one of our ports.

    Another port is never taken silently: clients that hold the old address would hand their password to a stranger.

    Raises:
        LocalStackError: names component, port, the process that holds it when it can be seen, and what to do.
    """
    for name in names:
        if name in ports and is_taken(ports[name]):
            raise LocalStackError(
                f"port {ports[name]}, kept for {name}, is taken by {holder(ports[name])}. End that process, or run "
                f"`market-pipeline up --repick-ports` to choose another port (kept in {home.ports_file})"
            )


def is_taken(port: int) -> bool:
    """Tell whether a server listens on a loopback port (connections still closing do not count)."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def holder(port: int) -> str:
    """Describe the process that listens on a port, as far as our rights let us see it."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        pass
    return "another process"


def _read(home: Home) -> dict[str, int]:
    try:
        ports = json.loads(home.ports_file.read_text())
        if not isinstance(ports, dict) or not all(isinstance(p, int) and 0 < p < 65_536 for p in ports.values()):
            raise ValueError("not an object of port numbers")
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise LocalStackError(
            f"{home.ports_file} is damaged ({error}): delete it while the stack is down, and new ports are chosen"
        ) from error
    return ports


def _choose(used: set[int]) -> int:
    """Choose a free port below the range from which the kernel takes the ports of outgoing connections.

    A port from that range (what binding port 0 gives) would sooner or later be some connection's own port
    at the moment when the stack starts again.
    """
    first_ephemeral = _ephemeral_start()
    candidates = [port for port in range(_FIRST, _LAST + 1) if port < first_ephemeral and port not in used]
    for port in random.sample(candidates, len(candidates)):
        if not is_taken(port):
            return port
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as any_port:
        any_port.bind((LOOPBACK, 0))
        return int(any_port.getsockname()[1])


def _ephemeral_start() -> int:
    try:
        return int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _LAST + 1
