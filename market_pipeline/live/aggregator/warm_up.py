"""Making a bar for nobody, so that the first real one does not wait for what loads at first use."""

from __future__ import annotations

import numpy as np

from market_pipeline.bus.envelope import encode_batches
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.live_bars import LiveBars
from market_pipeline.market.live_facts import BatchFacts, LiveRules, first_state
from market_pipeline.market.sessions import MINUTE_MS
from market_pipeline.market.tick_arrays import TickArrays


def warm_up(instrument: Instrument) -> None:
    """Make the bars of one tick and encode them: pyarrow alone imports a second's worth at its first array."""
    bars = LiveBars(instrument, LiveRules(), first_state(1, seen_from=0))
    one, at, yes = np.ones(1), np.full(1, MINUTE_MS), np.ones(1, dtype=bool)
    tick = TickArrays(ts=at, received=at, quote=yes, trade=yes, bid=one, ask=one, price=one, size=one)
    bars.take(BatchFacts(1, 1, 1, "warm-up", 0, proven=2 * MINUTE_MS, alive=2 * MINUTE_MS), tick)
    for frame in bars.due(1).values():
        encode_batches(frame, correlation_id="warm-up")
