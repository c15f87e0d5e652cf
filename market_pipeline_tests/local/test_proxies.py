"""A proxy of the environment has no part in what stays on loopback, and sees no password of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from market_pipeline.local import passwords, ports
from market_pipeline.local.components import Context
from market_pipeline.local.components.dagster import DagsterCode
from market_pipeline.local.doctor import examine
from market_pipeline.local.layout import Home
from market_pipeline.local.stack import Stack
from market_pipeline.settings import is_loopback, load_settings

_CHECK = """
import sys, grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
with grpc.insecure_channel(sys.argv[1]) as channel:
    print(health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status)
"""


@pytest.fixture(autouse=True)
def closed_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Name a proxy at which nothing answers, as a company's does to requests for another machine's loopback."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("MARKET_PIPELINE_") or name == "POLYGON_API_KEY":
            monkeypatch.delenv(name)
    with socket.socket() as taken:  # bound and not listening: nobody else gets the port
        taken.bind(("127.0.0.1", 0))
        for scheme in ("http", "https", "all"):
            monkeypatch.setenv(f"{scheme}_proxy", f"http://127.0.0.1:{taken.getsockname()[1]}")
        yield


def test_the_stack_starts_and_is_found_well(tmp_path: Path) -> None:
    with Stack(tmp_path / "home", ("clickhouse", "simulator"), die_with_parent=True) as stack:
        found = {check.name: check for check in examine(stack.home)}
    assert found["clickhouse"].verdict == "good", found["clickhouse"]
    assert found["simulator"].verdict == "good", found["simulator"]
    assert found["vendor"].verdict == "good", found["vendor"]


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    def Check(self, request: object, context: object) -> object:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


def test_dagsters_processes_reach_their_code_server(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.create()
    context = Context(home, ports.ensure_ports(home), passwords.ensure_passwords(home), load_settings(home.root))
    with ThreadPoolExecutor(1) as workers:
        server = grpc.server(workers)
        health_pb2_grpc.add_HealthServicer_to_server(_Health(), server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        result = subprocess.run(
            [sys.executable, "-c", _CHECK, address],
            env=dict(DagsterCode(context).launch().env),
            capture_output=True,
            text=True,
            timeout=60,
        )
        server.stop(None).wait()
    assert (result.returncode, result.stdout.strip()) == (0, "1"), result.stderr


def test_only_loopback_is_without_a_proxy() -> None:
    assert is_loopback("http://127.0.0.1:8080/v2")
    assert is_loopback("ws://localhost/forex")
    assert is_loopback("http://[::1]:8080")
    assert not is_loopback("https://api.polygon.io")
    assert not is_loopback("http://127.0.0.1.example.com")
