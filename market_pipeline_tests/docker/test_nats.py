"""The real nats-server with the files of docker/nats: alone, and as a cluster of three."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nats
import pytest
from pydantic import SecretStr

from market_pipeline.bus.session import open_bus
from market_pipeline.bus.streams import HISTORY, MB, STREAMS, storage_needed
from market_pipeline.errors import BusUnreachable
from market_pipeline.settings import NatsSettings
from market_pipeline_tests.docker.files import DOCKER, PASSWORD, environment, mounts, services
from market_pipeline_tests.servers import die_with_parent

NATS_SERVER = Path(sysconfig.get_path("scripts")) / "nats-server"
NODES = ("nats", "nats-2", "nats-3")
CLIENT_PORT, ROUTE_PORT = 4222, 6222


def configuration(node: str, kind: str, folder: Path, address: str) -> Path:
    """Write the node's files as its container has them; only addresses and the store's folder are the test's own."""
    text = (DOCKER / "nats" / "nats.conf").read_text()
    replaced = {
        f'"0.0.0.0:{CLIENT_PORT}"': f'"{address}:-1"',
        '"127.0.0.1:8222"': '"127.0.0.1:-1"',
        "store_dir: /data\n": f"store_dir: {json.dumps(str(folder / 'store'))}\n",
    }
    for theirs, ours in replaced.items():
        assert text.count(theirs) == 1
        text = text.replace(theirs, ours)
    spec = services(kind)[node]
    for place, source in mounts(spec).items():
        if place.endswith(".conf"):
            (folder / Path(place).name).write_text(
                f"{text}\nports_file_dir: {json.dumps(str(folder))}\n"
                if source == "./nats/nats.conf"
                else (DOCKER / source).read_text().replace(f'"0.0.0.0:{ROUTE_PORT}"', f'"{address}:{ROUTE_PORT}"')
            )
    command: list[str] = spec["command"]
    return folder / Path(command[command.index("--config") + 1]).name


def node_environment(node: str, kind: str, addresses: dict[str, str]) -> dict[str, str]:
    given = environment(node, kind)
    for name, address in addresses.items():
        given = {
            key: value.replace(f"@{name}:{ROUTE_PORT}", f"@{address}:{ROUTE_PORT}") for key, value in given.items()
        }
    return {"PATH": os.environ["PATH"], **given}


class Node:
    """A running server."""

    def __init__(self, config: Path, variables: dict[str, str]) -> None:
        self.folder = config.parent
        with (self.folder / "nats.log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(NATS_SERVER), "-c", str(config)],
                env=variables,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def ports(self) -> dict[str, list[str]]:
        """Wait until it listens."""
        file = self.folder / f"nats-server_{self.process.pid}.ports"
        until = time.monotonic() + 30
        while not (file.exists() and file.read_text().endswith("}")):
            assert self.process.poll() is None, (self.folder / "nats.log").read_text()
            assert time.monotonic() < until, "nats-server does not start"
            time.sleep(0.02)
        found: dict[str, list[str]] = json.loads(file.read_text())
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def running(kind: str, nodes: tuple[str, ...], addresses: dict[str, str], folder: Path) -> Iterator[dict[str, Node]]:
    with ExitStack() as stack:
        started = {}
        for name in nodes:
            (folder / name).mkdir()
            config = configuration(name, kind, folder / name, addresses[name])
            started[name] = Node(config, node_environment(name, kind, addresses))
            stack.callback(started[name].kill)
        yield started


async def monitored(address: str, page: str) -> dict[str, Any]:
    found: dict[str, Any] = json.load(await asyncio.to_thread(urlopen, f"{address}/{page}", None, 5))
    return found


@pytest.mark.parametrize(("kind", "node"), [("single", "nats"), *(("cluster", node) for node in NODES)])
def test_nats_accepts_its_configuration_only_with_the_secrets(kind: str, node: str, tmp_path: Path) -> None:
    command = [str(NATS_SERVER), "-t", "-c", str(configuration(node, kind, tmp_path, "127.0.0.1"))]
    variables = node_environment(node, kind, {})

    def accepts(given: dict[str, str]) -> bool:
        return subprocess.run(command, env=given, capture_output=True, timeout=30).returncode == 0

    assert accepts(variables)
    for missing in variables:
        if missing != "PATH":
            assert not accepts({name: value for name, value in variables.items() if name != missing}), missing


async def test_nats_runs_as_configured_and_has_room_for_every_stream(tmp_path: Path) -> None:
    with running("single", ("nats",), {"nats": "127.0.0.1"}, tmp_path) as nodes:
        ports = await asyncio.to_thread(nodes["nats"].ports)
        [address], [monitoring] = ports["nats"], ports["monitoring"]
        client = await nats.connect(address, user="market", password=PASSWORD, allow_reconnect=False)
        assert client.max_payload == 4 * MB
        await client.close()
        with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
            await nats.connect(address, user="market", password="wrong", allow_reconnect=False)
        async with open_bus(NatsSettings(url=address, user="market", password=SecretStr(PASSWORD)), "test") as bus:
            await bus.ensure_streams()  # at full size: the server refuses what it has no room for
            await bus.probe()
        jetstream = await monitored(monitoring, "jsz")
        assert jetstream["streams"] == len(STREAMS) + 1  # and the probe's
        assert storage_needed() <= jetstream["reserved_storage"] < storage_needed() + MB
        assert jetstream["config"]["max_storage"] >= storage_needed() + 1024 * MB  # leases, checkpoints
        assert jetstream["config"]["sync_always"] is True
        assert (await monitored(monitoring, "healthz"))["status"] == "ok"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only 127.0.0.1 is loopback")
async def test_three_nodes_keep_every_stream_when_one_ends(tmp_path: Path) -> None:
    # An address of its own for each node of each process that tests: so the routes' port can be the file's.
    base = (127 << 24) + 4 * os.getpid()
    addresses = {name: str(IPv4Address(base + number)) for number, name in enumerate(NODES, 1)}
    with running("cluster", NODES, addresses, tmp_path) as nodes:
        ports = {name: await asyncio.to_thread(node.ports) for name, node in nodes.items()}
        settings = NatsSettings(
            url=",".join(found["nats"][0] for found in ports.values()),
            user="market",
            password=SecretStr(PASSWORD),
            replicas=int(environment("code", "cluster")["MARKET_PIPELINE_NATS__REPLICAS"]),
        )

        async def publish(data: bytes) -> None:
            """Work as a program does: everything again from the start until it goes through."""
            until = time.monotonic() + 60  # a leader is elected in seconds; this machine may be busy
            while True:
                try:
                    async with open_bus(settings, "test") as bus:
                        await bus.ensure_streams()
                        await bus.probe()
                        await bus.js.publish("history.EURUSD.1m", data, stream=HISTORY, timeout=5)
                        return
                except (BusUnreachable, TimeoutError, nats.errors.Error):
                    assert time.monotonic() < until, (tmp_path / "nats-2" / "nats.log").read_text()[-2000:]
                    await asyncio.sleep(0.1)

        await publish(b"before")
        async with open_bus(settings, "test") as bus:
            for name in (*STREAMS, "PROBE"):
                info = await bus.js.stream_info(name)
                assert info.cluster is not None
                assert {info.cluster.leader, *(each.name for each in info.cluster.replicas or [])} == set(NODES), name
            leader = (await bus.js.stream_info(HISTORY)).cluster.leader  # type: ignore[union-attr]
        await asyncio.to_thread(nodes[str(leader)].kill)
        await publish(b"after")
        async with open_bus(settings, "test") as bus:
            kept = [
                (await bus.js.get_msg(HISTORY, seq=1)).data,
                (await bus.js.get_last_msg(HISTORY, "history.EURUSD.1m")).data,
            ]
        assert kept == [b"before", b"after"]
