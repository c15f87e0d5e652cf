"""`market-pipeline dead-letters` against a real NATS, as a person uses it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from market_pipeline.bus.dead_letter import DeadLetter, Reason
from market_pipeline.bus.dead_letters import publish_letter
from market_pipeline.bus.envelope import encode_batches
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import HISTORY, LIVE
from market_pipeline.cli import build_app
from market_pipeline_tests.bus.bars import bars
from market_pipeline_tests.servers import NatsProcess

BATCH = encode_batches(bars(7), correlation_id="c-7")[0]
LETTERS = (
    DeadLetter(
        reason=Reason.INSERT_FAILED,
        stream=LIVE,
        subject="market.EURUSD.1m",
        stream_seq=41,
        correlation_id="c-7",
        payload=BATCH.payload,
        first_error="refused",
        last_error="refused [again]",
        attempts=10,
        headers=BATCH.headers.to_nats(),
    ),
    DeadLetter(Reason.VENDOR_MALFORMED_ROW, HISTORY, "history.IBM.1m", 0, "c-8", b'{"t":null}', "t: null"),
    DeadLetter(Reason.UNREADABLE_PAYLOAD, LIVE, "market.EURUSD.1m", 42, "c-9", b"\x00\xff junk", "not Arrow"),
)


@pytest.fixture(scope="module")
def server() -> Iterator[NatsProcess]:
    with NatsProcess() as running:
        yield running


@pytest.fixture
def home(server: NatsProcess, tmp_path: Path) -> Path:
    """A stack's folder whose bus holds the three letters."""

    async def fill(bus: BusSession) -> None:
        for stream in await bus.js.streams_info():
            await bus.js.delete_stream(stream.config.name or "")
        await bus.ensure_streams(scale=1 / 64)
        for letter in LETTERS:
            await publish_letter(bus.js, letter)

    over(server, fill)
    file = tmp_path / "settings.json"
    file.touch(mode=0o600)
    secret = server.settings.password.get_secret_value()
    file.write_text(json.dumps({"nats": {"url": server.url, "user": server.user, "password": secret}}))
    return tmp_path


def over(server: NatsProcess, work: Callable[[BusSession], Awaitable[int | None]]) -> int | None:
    async def run() -> int | None:
        async with open_bus(server.settings, "test") as bus:
            return await work(bus)

    return asyncio.run(run())


def call(home: Path, *arguments: str, answer: str = "") -> Result:
    given = ["dead-letters", *arguments, "--home", str(home)]
    return CliRunner().invoke(build_app(), given, input=answer, env={"COLUMNS": "200"})


def listed(home: Path, *arguments: str) -> list[dict[str, object]]:
    result = call(home, "list", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.output.splitlines() if line.startswith("{")]


def test_listed_shown_and_read(home: Path) -> None:
    first = listed(home)[0]
    assert (first["reason"], first["attempts"], first["stream_seq"]) == ("insert_failed", 10, 41)
    assert (first["first_error"], first["last_error"]) == ("refused", "refused [again]")
    assert first["bytes"] == len(BATCH.payload)
    assert [row["seq"] for row in listed(home, "--stream", LIVE)] == [1, 3]
    assert [row["seq"] for row in listed(home, "--reason", "vendor_malformed_row")] == [2]
    assert [row["seq"] for row in listed(home, "--older-than", "1")] == []
    assert "3 dead letters, 3 unread" in call(home, "list").output
    shown = call(home, "show", "1").output
    assert "refused [again]" in shown
    assert "7 rows:" in shown
    assert "EURUSD,1m,2024-01-01" in shown
    assert '{"t":null}' in call(home, "show", "2").output
    assert "00 ff 20 6a 75 6e 6b" in call(home, "show", "3").output
    assert json.loads(call(home, "show", "1", "--json").output)["payload_hex"] == BATCH.payload.hex()
    assert "1 marked" in call(home, "ack", "1").output
    assert [row["seq"] for row in listed(home, "--unread")] == [2, 3]
    assert "3 dead letters, 2 unread" in call(home, "list").output


def test_replayed_with_their_own_headers_and_payload(home: Path, server: NatsProcess) -> None:
    result = call(home, "replay", "--all")
    assert result.exit_code == 1, "one cannot be"
    assert "2 replayed, 1 cannot" in result.output
    assert "ask the vendor again" in result.output
    assert [row["seq"] for row in listed(home)] == [2]

    async def look(bus: BusSession) -> None:
        async with bus.consumer(LIVE) as consumer:
            deliveries = await consumer.fetch(10, 5)
        by_payload = {delivery.payload: delivery for delivery in deliveries}
        assert set(by_payload) == {BATCH.payload, LETTERS[2].payload}
        assert by_payload[BATCH.payload].batch_headers() == BATCH.headers
        assert by_payload[BATCH.payload].headers == BATCH.headers.to_nats()

    over(server, look)


def test_dropped_only_when_meant(home: Path) -> None:
    assert call(home, "drop").exit_code == 2, "says neither which nor all"
    assert call(home, "drop", "1", "--reason", "insert_failed").exit_code == 2
    assert call(home, "drop", "--all", answer="n\n").exit_code == 1
    assert len(listed(home)) == 3
    assert "1 dropped" in call(home, "drop", "2", answer="y\n").output
    assert "2 dropped" in call(home, "drop", "--stream", LIVE, "--yes").output
    assert listed(home) == []


def test_what_is_not_there_is_said(home: Path) -> None:
    assert "there is no dead letter 99" in str(call(home, "show", "99").exception)
    assert "one of unreadable_envelope" in str(call(home, "list", "--reason", "because").exception)
