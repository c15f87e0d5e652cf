"""The check dead_letters and the job replay_dead_letters, against a real NATS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import dagster as dg
import pytest

from market_pipeline.bus.dead_letter import DeadLetter, Reason
from market_pipeline.bus.dead_letter_box import DeadLetterBox
from market_pipeline.bus.dead_letters import publish_letter
from market_pipeline.bus.session import BusSession, open_bus
from market_pipeline.bus.streams import HISTORY, LIVE
from market_pipeline.orchestration.assets.minutes import MINUTES
from market_pipeline.orchestration.checks.definitions import DEAD_LETTERS, dead_letter_verdict
from market_pipeline.orchestration.checks.verdict import Verdict
from market_pipeline.orchestration.resources import BusResource, SettingsResource
from market_pipeline_tests.servers import NatsProcess

JOB = "replay_dead_letters"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NatsProcess]:
    with NatsProcess() as running:
        for name, value in (("URL", running.url), ("USER", running.user), ("CONNECT_TIMEOUT", "1")):
            monkeypatch.setenv(f"MARKET_PIPELINE_NATS__{name}", value)
        monkeypatch.setenv("MARKET_PIPELINE_NATS__PASSWORD", running.settings.password.get_secret_value())
        yield running


def over(server: NatsProcess, work: Callable[[BusSession], Awaitable[None]]) -> None:
    async def run() -> None:
        async with open_bus(server.settings, "test") as bus:
            await work(bus)

    asyncio.run(run())


async def bury_three(bus: BusSession) -> None:
    await bus.ensure_streams(scale=1 / 64)
    for stream, reason, place in (
        (LIVE, Reason.INSERT_FAILED, 1),
        (LIVE, Reason.INSERT_FAILED, 2),
        (HISTORY, Reason.VENDOR_MALFORMED_ROW, 0),
    ):
        subject = "market.IBM.1m" if stream == LIVE else "history.IBM.1m"
        await publish_letter(bus.js, DeadLetter(reason, stream, subject, place, "c", b"x", f"error {place}"))


def verdict() -> Verdict:
    return dead_letter_verdict(BusResource(settings=SettingsResource()))


def test_red_while_any_is_unread(server: NatsProcess) -> None:
    assert verdict().level == "pass", "streams that were never created hold nothing"
    over(server, bury_three)
    red = verdict()
    assert (red.level, red.numbers) == ("error", {"unread dead letters": 3})
    assert red.table.select("stream", "reason", "unread", "newest error").rows() == [
        (LIVE, "insert_failed", 2, "error 2"),
        (HISTORY, "vendor_malformed_row", 1, "error 0"),
    ]
    assert "LIVE, insert_failed: error 2" in red.sentence

    async def read(bus: BusSession) -> None:
        await DeadLetterBox(bus).acknowledge([1, 2])
        await DeadLetterBox(bus).drop(3)

    over(server, read)
    assert verdict().level == "pass"
    server.kill()
    assert (verdict().level, "cannot be counted" in verdict().sentence) == ("error", True)


def test_the_job_replays_what_was_chosen_and_judges_anew(
    defs: dg.Definitions, instance: dg.DagsterInstance, server: NatsProcess
) -> None:
    over(server, bury_three)
    job = defs.resolve_job_def(JOB)

    def replay(**config: object) -> dg.ExecuteInProcessResult:
        return job.execute_in_process(instance=instance, run_config={"ops": {"replay": {"config": config}}})

    def newest() -> bool:
        key = dg.AssetCheckKey(MINUTES, DEAD_LETTERS)
        [record] = instance.event_log_storage.get_asset_check_execution_history(key, limit=1)
        assert record.event is not None
        assert record.event.dagster_event is not None
        return bool(record.event.dagster_event.asset_check_evaluation_data.passed)

    def metadata(result: dg.ExecuteInProcessResult) -> dict[str, object]:
        [output] = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
        return {name: value.value for name, value in output.step_output_data.metadata.items()}

    assert metadata(replay(reason="insert_failed", limit=1)) == {"replayed": 1, "not replayable": 0}
    rest = metadata(replay())
    assert (rest["replayed"], rest["not replayable"]) == (1, 1)
    assert "ask the vendor again" in str(rest["cannot be replayed"])
    assert not newest()

    async def look(bus: BusSession) -> None:
        assert (await bus.js.stream_info(LIVE)).state.messages == 2
        await DeadLetterBox(bus).drop(3)

    over(server, look)
    replay()
    assert newest()


def test_a_reason_that_there_is_not_is_said(
    defs: dg.Definitions, instance: dg.DagsterInstance, server: NatsProcess
) -> None:
    with pytest.raises(dg.Failure, match="one of unreadable_envelope"):
        defs.resolve_job_def(JOB).execute_in_process(
            instance=instance, run_config={"ops": {"replay": {"config": {"reason": "because"}}}}
        )
