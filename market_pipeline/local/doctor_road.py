"""What the doctor finds on the road of a batch: streams that fill up, consumers that lag, what waits in the spool."""

from __future__ import annotations

from collections.abc import Iterator

from market_pipeline.bus.overview import StreamStatus, read_bus_status
from market_pipeline.bus.spool import FolderStatus, spool_root, spool_status
from market_pipeline.bus.streams import HISTORY, TICKS
from market_pipeline.errors import BusError, SpoolError
from market_pipeline.local.check import Check
from market_pipeline.settings import Settings

FILLING, FULL = 0.8, 0.95
BRIDGE_RUNS = "turn on the sensor keep_live, or run one: market-pipeline run bridge"


def examine_streams(settings: Settings) -> Iterator[Check]:
    """Yield a finding for each stream that needs a look, or one that none does; and one for unread dead letters."""
    try:
        status = read_bus_status(settings)
    except BusError as error:
        yield Check("streams", "warning", str(error), "mend nats first")
        return
    found = [check for each in status.streams for check in judge_stream(each, settings.throttle.lag_s)]
    yield from found
    if not found:
        yield Check("streams", "good", "none fills up, and no consumer lags")
    if total := sum(count for _, _, count in status.unread):
        yield Check("dead letters", "warning", f"{total:,} unread", "market-pipeline dead-letters list --unread")


def judge_stream(stream: StreamStatus, lag_s: float) -> Iterator[Check]:
    """Yield what is wrong with a stream: absent, full, or with messages that wait for the store longer than `lag_s`."""
    name = f"stream {stream.name}"
    if not stream.exists:
        yield Check(name, "warning", "it does not exist yet", "the first run or service creates it")
        return
    share = f"{stream.full:.0%} of its {stream.limit / 1024**2:,.0f} MB are taken"
    if stream.full >= FILLING and not stream.discards_old:
        yield Check(
            name,
            "wrong" if stream.full >= FULL else "warning",
            share + (": whoever publishes waits" if stream.full >= FULL else ""),
            "nothing takes its messages away: " + BRIDGE_RUNS
            if stream.lag is not None
            else "read and drop old letters: market-pipeline dead-letters",
        )
    lag = stream.lag
    if lag is not None and lag.oldest_age_s > lag_s and lag.num_pending + lag.num_ack_pending:
        waiting = lag.num_pending + lag.num_ack_pending
        advice = {
            TICKS: "is the tick bridge running (market-pipeline services), and PostgreSQL ready?",
            HISTORY: f"is ClickHouse ready, and does a run or a bridge work on it? {BRIDGE_RUNS}",
        }.get(stream.name, f"is ClickHouse ready, and a bridge running (market-pipeline services)? {BRIDGE_RUNS}")
        yield Check(name, "warning", f"{waiting:,} messages are not stored, the oldest for {lag.oldest_age_s:,.0f} s",
                    advice)  # fmt: skip


def examine_spool(settings: Settings) -> Iterator[Check]:
    """Yield a finding for each folder of the spool in which something lies, or one that nothing does."""
    try:
        found = [check for each in spool_status(spool_root(settings)) for check in _folder(each)]
    except SpoolError as error:
        found = [Check("spool", "wrong", str(error))]
    yield from found
    if not found:
        yield Check("spool", "good", "nothing waits on disk")


def _folder(folder: FolderStatus) -> Iterator[Check]:
    who = f"{folder.name or folder.path.name} (pid {folder.pid})"
    if folder.error:
        yield Check("spool", "wrong", folder.error, "nothing of it is drained until it can be read")
    if folder.records or folder.segments:
        age = f", the oldest for {folder.oldest_age_s:,.0f} s" if folder.oldest_age_s is not None else ""
        yield Check(
            "spool",
            "warning",
            f"{folder.records:,} records of {who} wait{age}",
            f"its process is gone, any bridge publishes them: {BRIDGE_RUNS}"
            if folder.adoptable
            else "they are published as soon as NATS takes them: is nats ready, and is its stream full?",
        )
    if folder.bad:
        yield Check(
            "spool",
            "warning",
            f"{folder.bad} damaged or refused pieces of {who}",
            f"they lie in {folder.path / 'bad'}: load their time again, then remove the folder",
        )
