from __future__ import annotations

import asyncio
import socket
import time

import pytest
from pydantic import SecretStr

from market_pipeline.bus.connection import addresses, connect, probe
from market_pipeline.errors import BusAuthError, BusUnreachable, SettingsError
from market_pipeline.settings import NatsSettings
from market_pipeline_tests.servers import NatsProcess


async def test_probe_publishes_and_reads_back(server: NatsProcess) -> None:
    nc = await connect(server.settings, "test")
    try:
        assert 0 < await probe(nc) < 1
        assert await probe(nc) < 1  # again, on the stream that exists
    finally:
        await nc.close()


@pytest.mark.parametrize("user", ["market", "", "somebody"])
async def test_a_wrong_password_is_said_at_once_without_showing_it(server: NatsProcess, user: str) -> None:
    settings = NatsSettings(url=server.url, user=user, password=SecretStr("hunter2"), connect_timeout=30)
    started = time.monotonic()
    with pytest.raises(BusAuthError, match=f"127.0.0.1:{server.port}.*nats.password") as error:
        await connect(settings, "test")
    assert time.monotonic() - started < 20
    assert "hunter2" not in str(error.value)


async def test_nothing_there_is_said_within_the_time_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        port = taken.getsockname()[1]
        settings = NatsSettings(url=f"nats://u:secret@127.0.0.1:{port}", connect_timeout=1)
        with pytest.raises(BusUnreachable, match=f"127.0.0.1:{port} does not answer within 1 s.*refused") as error:
            await connect(settings, "test")
    assert "secret" not in str(error.value)


async def test_a_port_that_takes_connections_and_says_nothing_is_unreachable() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        settings = NatsSettings(url=f"nats://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=1)
        with pytest.raises(BusUnreachable, match="no answer"):
            await connect(settings, "test")


async def test_what_is_no_address_is_a_setting_to_mend() -> None:
    with pytest.raises(SettingsError, match=r"nats\.url"):
        await connect(NatsSettings(url="nats://host:port"), "test")


async def test_a_server_without_jetstream_fails_the_probe() -> None:
    with NatsProcess(jetstream=False) as server:
        nc = await connect(server.settings, "test")
        try:
            with pytest.raises((BusUnreachable, SettingsError), match="JetStream"):
                await probe(nc)
        finally:
            await nc.close()


async def test_a_server_that_is_just_starting_is_met_and_a_lost_one_met_again(own_server: NatsProcess) -> None:
    own_server.kill()
    waiting = asyncio.create_task(connect(own_server.settings, "test"))
    await asyncio.sleep(0.3)
    own_server.start()
    nc = await waiting
    try:
        await probe(nc)
        own_server.restart()
        until = time.monotonic() + 15
        while True:
            try:
                await probe(nc, timeout_s=1)
                break
            except BusUnreachable:
                assert time.monotonic() < until
    finally:
        await nc.close()


def test_addresses_show_neither_user_nor_password() -> None:
    settings = NatsSettings(url="nats://u:p@one:4223, two", password=SecretStr("p"))
    assert addresses(settings) == "one:4223, two:4222"
