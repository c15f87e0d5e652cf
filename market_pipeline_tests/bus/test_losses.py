"""The bucket of losses: what is recorded is found, each once, until it is repaired."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NoKeysError
from nats.js.kv import KeyValue

from market_pipeline.bus.losses import LOSS_BUCKET, LossBucket, LossInterval
from market_pipeline.bus.session import BusSession

T0 = datetime(2026, 3, 2, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


async def test_what_is_recorded_is_found_whatever_a_watch_of_the_keys_says(
    nc: Client, js: JetStreamContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(self: KeyValue) -> list[str]:
        raise NoKeysError  # as it does now and then, where the first keys come before it has asked for their number

    monkeypatch.setattr(KeyValue, "keys", nothing)
    losses = LossBucket(BusSession(nc, js))
    assert await losses.all() == []
    one, two, three = (LossInterval(symbol, T0, T0 + MINUTE, "lease", "s") for symbol in ("B", "A", "C"))
    for loss in (one, two, three, two):
        await losses.record(loss)
    await (await js.key_value(LOSS_BUCKET)).put("D.1.2.lease", b"no loss")
    assert await losses.all() == [two, one, three]
    await losses.remove([one])
    assert await losses.all() == [two, three]
