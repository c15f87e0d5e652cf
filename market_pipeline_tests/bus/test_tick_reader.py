"""What a reader of TICKS knows of the time in which it heard nothing."""

from __future__ import annotations

import asyncio
import math
import time

from market_pipeline.bus.session import open_bus
from market_pipeline.bus.tick_reader import UNHEARD_S, TickReader
from market_pipeline_tests.servers import NatsProcess


async def test_a_quiet_stream_is_told_from_a_server_that_is_away() -> None:
    with NatsProcess() as server:
        async with open_bus(server.settings, "test") as bus:
            await bus.ensure_streams()
            reader = TickReader(bus, ["EURUSD"], 1)
            for _ in range(3):
                assert await reader.fetch(10, 0.05) == []
            assert reader.at_end
            assert reader.away_at == -math.inf
            server.kill()
            gone = time.monotonic()
            while reader.away_at < gone:
                await reader.fetch(10, 0.05)
                assert time.monotonic() - gone < 20
            server.start()
            while not reader.at_end:
                assert await reader.fetch(10, 0.05) == []
                assert time.monotonic() - gone < 20
            await reader.close()


async def test_who_did_not_listen_knows_of_no_silence() -> None:
    """The server was away and came back while its reader was busy with something else: it sees nothing of that."""
    with NatsProcess() as server:
        async with open_bus(server.settings, "test") as bus:
            await bus.ensure_streams()
            reader = TickReader(bus, ["EURUSD"], 1)
            await reader.fetch(10, 0.05)
            await asyncio.sleep(UNHEARD_S + 0.3)
            before = time.monotonic()
            await reader.fetch(10, 0.05)
            assert reader.away_at >= before
            heard_again = reader.away_at
            for _ in range(8):
                await reader.fetch(10, 0.05)
            assert reader.away_at == heard_again
            await reader.close()
