"""Bars of 1s and 1m from the live ticks of one symbol: event time, watermark, lateness, revisions.

The ticks of every minute that may still change are kept, and a window's bar is made of them by the very functions that
make bars of stored ticks: so however the ticks were cut into batches, and whatever came twice or late, the bar is the
one of its ticks. Nothing here reads a clock: what comes out depends on the batches and on what the caller says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from market_pipeline.market.aggregation import bars_from_quotes, bars_from_trades
from market_pipeline.market.bars import BAR_SCHEMA, LIVE_AGGREGATED, TS
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.live_facts import BatchFacts, LiveCounts, LiveRules, SymbolState
from market_pipeline.market.live_minute import SECOND_MS, Floats, Ints, Minute
from market_pipeline.market.live_proof import Proof
from market_pipeline.market.sessions import MINUTE_MS
from market_pipeline.market.tick_arrays import TickArrays

TIMEFRAMES: dict[str, int] = {"1s": SECOND_MS, "1m": MINUTE_MS}
_MADE = ("ts", "open", "high", "low", "close", "volume", "vwap", "trades")
# How many minutes beyond the lateness a bar is remembered, to be called incomplete when a tick of it comes after all.
_REMEMBERED = 60
# What can be added up without an overflow, and far more than any price or size.
_LARGEST = 1e100


class LiveBars:
    """Make the live bars of one symbol: of quotes for forex, of trades for everything else.

    Give the batches in the order of the stream to `take`; `due` returns the bars that closed or changed since.
    """

    def __init__(self, instrument: Instrument, rules: LiveRules, state: SymbolState) -> None:
        """Go on from a state; batches before its `from_seq` are passed over."""
        self.symbol = instrument.key
        self.counts = LiveCounts()
        self._kind: Literal["quote", "trade"] = "quote" if instrument.asset_class == "forex" else "trade"
        self._basis = instrument.price_basis
        self._rules = rules
        self._proof = Proof(state.proof)
        self.from_seq, self._through = state.from_seq, state.through_seq
        self._epoch, self._floor, self._revision = state.epoch, state.floor, state.revision
        self._seq = 0
        self._watermark = 0
        self._forced = 0
        self._minutes: dict[int, Minute] = {}
        self._batches: dict[int, int] = {}  # id of a batch with ticks -> where its ticks end
        self._judge_again = False
        self._unproven_until = 0  # the latest end of a window that was closed without proof
        self._judged_at = 0
        self._looked = 0  # what had closed at the last look, to the second
        self._touched = False  # a window that had closed then has another tick since
        self._pruned_at = 0
        self._finals: dict[int, pl.DataFrame] = {}
        self._demoted: list[pl.DataFrame] = []
        self._late: dict[int, int] = {}
        self._spoiled: set[int] = set()  # minutes that are final but still here, and lack a tick
        self._received = 0

    @property
    def watermark(self) -> int:
        """Up to where everything has come (epoch ms); 0 before the first batch."""
        return self._watermark

    @property
    def waiting(self) -> bool:
        """Whether a window has ticks that are in no published bar yet."""
        return any(minute.dirty for minute in self._minutes.values())

    def take(self, batch: BatchFacts, ticks: TickArrays | None) -> None:
        """Take the next batch: ticks, or none.

        Passed over and counted: a batch that came before, a batch of an older epoch than the newest, a tick of the
        other kind, without a price, far ahead of its time, or later than the lateness allows.
        """
        if batch.seq < self.from_seq:
            return
        self._seq = max(self._seq, batch.seq)
        if batch.epoch < self._epoch:
            self.counts.fenced += 1
            return
        if batch.batch_id in self._batches:
            self.counts.duplicates += 1
            return
        self.counts.batches += 1
        self._epoch = batch.epoch
        if self._proof.claim(batch):
            self._judge_again = True
        if ticks is not None and len(ticks):
            # Before its proof counts: after an outage one batch may hold the ticks of many minutes.
            self._batches[batch.batch_id] = max(batch.proven, self._add(batch, ticks))
        self._watermark = max(self._watermark, batch.proven)
        self._floor = max(self._floor, _minute(self._watermark - self._rules.lateness_ms))

    def interrupt(self) -> None:
        """Batches of the symbol have been missed: what is under way is not complete."""
        self._proof.interrupt()
        self._judge_again = True

    def lose(self, start: int, end: int) -> None:
        """Ticks in [start, end) (epoch ms) may be missing: what they would be in is not complete."""
        self._proof.lose(start, end)
        self._judge_again = True

    def close(self, until: int) -> None:
        """Close what ended before `until` (epoch ms) though nothing proves it: for when no batch comes any more."""
        self._forced = max(self._forced, until)

    def due(self, now: int) -> dict[str, pl.DataFrame]:
        """Return the bars (BAR_SCHEMA, by timeframe) that closed or changed since the last call, as now published.

        `now` (epoch ms) becomes their revision; a later call never gives a smaller one.
        """
        if self._judge_again or self._judged_at < min(self._watermark, self._unproven_until):
            self._judge()
            self._touched = True
        closed = max(self._watermark - self._rules.delay_ms, self._forced)
        if closed - closed % SECOND_MS == self._looked and not self._touched and not self._demoted:
            return {}  # asked many times a second, it has an answer once a second
        self._looked, self._touched = closed - closed % SECOND_MS, False
        parts: dict[str, list[pl.DataFrame]] = {code: [] for code in TIMEFRAMES}
        parts["1m"] += self._demoted
        self._demoted.clear()
        self._received = 0
        for minute in sorted(self._minutes.values(), key=lambda each: each.open):
            for code, length in TIMEFRAMES.items():
                opens = minute.due(length, closed)
                if opens:
                    parts[code].append(self._bars(minute, code, opens))
                    self._received = max(self._received, minute.received)
        made = {code: frames[0] if len(frames) == 1 else pl.concat(frames) for code, frames in parts.items() if frames}
        if made:
            self._revision = max(now, self._revision + 1)
        self._prune()
        return {code: self._revised(frame) for code, frame in made.items()}

    def _revised(self, frame: pl.DataFrame) -> pl.DataFrame:
        columns = {each.name: each for each in frame.iter_columns()}
        columns["revision"] = pl.Series("revision", np.full(frame.height, self._revision, np.uint64))
        return pl.DataFrame([columns[name] for name in BAR_SCHEMA])

    @property
    def received(self) -> int:
        """When the newest tick of what `due` returned last was received (epoch ms)."""
        return self._received

    def late_minutes(self) -> dict[int, int]:
        """Return, once, the minutes (epoch ms) of ticks that came too late, with their number."""
        late, self._late = self._late, {}
        return late

    def state(self, next_seq: int) -> SymbolState:
        """Return what a restart needs; `next_seq` is the first batch of the stream that was not given yet."""
        oldest = min(self._minutes.values(), key=lambda minute: minute.first_seq, default=None)
        return SymbolState(
            from_seq=next_seq if oldest is None else oldest.first_seq,
            through_seq=max(self._seq, self._through),
            proof=self._proof.state(),
            epoch=self._epoch if oldest is None else oldest.first_epoch,
            floor=self._floor,
            revision=self._revision,
        )

    def _add(self, batch: BatchFacts, ticks: TickArrays) -> int:
        """Keep the ticks by minute; return the latest time among them."""
        ts, first, second = self._columns(ticks)
        if len(ts) == 0:
            return 0
        earliest, latest = int(ts.min()), int(ts.max())
        self._touched |= earliest < self._looked
        if (opened := _minute(earliest)) == _minute(latest):
            self._add_to(opened, batch, ts, first, second)
            return latest
        minutes = ts - ts % MINUTE_MS
        for opened in np.unique(minutes).tolist():
            here = minutes == opened
            self._add_to(opened, batch, ts[here], first[here], second[here])
        return latest

    def _add_to(self, opened: int, batch: BatchFacts, ts: Ints, first: Floats, second: Floats) -> None:
        if opened < self._floor:
            # Up to the checkpoint this was judged before: it is in a final bar, or was counted as late.
            if batch.seq > self._through:
                self._drop(opened, len(ts))
            return
        minute = self._minutes.get(opened)
        if minute is None:
            minute = self._minutes[opened] = Minute(opened, batch.seq, batch.epoch)
        self.counts.late += minute.add(ts, first, second, batch.epoch)
        minute.received = max(minute.received, batch.received)
        self.counts.ticks += len(ts)

    def _columns(self, ticks: TickArrays) -> tuple[Ints, Floats, Floats]:
        """Return ts and the two numbers of each tick that can make a bar; count the others."""
        ts, received = ticks.ts, ticks.received
        if self._kind == "quote":
            own, first, second = ticks.quote, ticks.bid, ticks.ask
        else:
            own, first, second = ticks.trade, ticks.price, ticks.size
        if not own.all():
            self.counts.other_kind += len(ts) - int(own.sum())
            ts, received, first, second = ts[own], received[own], first[own], second[own]
        good = (np.abs(first) < _LARGEST) & (np.abs(second) < _LARGEST)  # false for what is no number, too
        if self._kind == "quote":
            self.counts.crossed += int(np.count_nonzero(first > second))
        else:
            good &= second >= 0
        in_time = ts <= received + self._rules.ahead_ms
        keep = good & in_time
        if not keep.all():
            self.counts.malformed += int(np.count_nonzero(~good))
            self.counts.ahead += int(np.count_nonzero(good & ~in_time))
            ts, first, second = ts[keep], first[keep], second[keep]
        return ts, first, second

    def _drop(self, opened: int, ticks: int) -> None:
        """Count ticks that came too late; their bar is not what it says, and leaves the field to the vendor's."""
        self.counts.late_dropped += ticks
        self._late[opened] = self._late.get(opened, 0) + ticks
        if (final := self._finals.pop(opened, None)) is not None:
            self._demoted.append(final.with_columns(pl.lit(False).alias("complete")))
            self.counts.revisions += 1
        elif opened in self._minutes:
            self._spoiled.add(opened)
            self._judge_again = True

    def _bars(self, minute: Minute, code: str, opens: Sequence[int]) -> pl.DataFrame:
        length = TIMEFRAMES[code]
        ts, first, second, superseded = minute.ticks(min(opens), max(opens) + length)
        self.counts.superseded += superseded if length == MINUTE_MS else 0
        columns = {"ts": pl.Series(ts).cast(TS)}
        if self._kind == "quote":
            made = bars_from_quotes(pl.DataFrame({**columns, "bid": first, "ask": second}), code, self._basis)
        else:
            made = bars_from_trades(pl.DataFrame({**columns, "price": first, "size": second}), code)
        at = _ms(made.get_column("ts"))
        if len(at) > len(opens):
            wanted = np.isin(at, opens)
            made, at = made.filter(pl.Series(wanted)), at[wanted]
        complete = self._complete(at, length)
        for opened, proven in zip(at.tolist(), complete.tolist(), strict=True):
            again = minute.publish(opened, length, proven)
            self.counts.revisions += again
            self.counts.bars += not again
        if (until := int(at[-1]) + length) > self._watermark:
            self._unproven_until = max(self._unproven_until, until)
        # Series by Series: an expression starts an engine, which costs more than a few rows.
        names = {"symbol": self.symbol, "timeframe": code, "source": LIVE_AGGREGATED, "origin": ""}
        bars = pl.DataFrame(
            [
                *(pl.Series(name, [text]).new_from_index(0, len(at)) for name, text in names.items()),
                *(made.get_column(name) for name in _MADE),
                pl.Series("complete", complete),
                pl.Series("is_deleted", np.zeros(len(at), np.uint8)),
            ]
        )
        if length == MINUTE_MS:
            minute.bar = bars
        return bars

    def _judge(self) -> None:
        """Let the windows whose proof changed since they were published be published again."""
        for minute in self._minutes.values():
            for length in TIMEFRAMES.values():
                opens, said = minute.published(length)
                if len(opens):
                    changed = self._complete(opens, length) != said
                    minute.touch(length, opens[changed].tolist())
        self._judge_again = False
        self._judged_at = self._watermark

    def _complete(self, opens: Ints, length: int) -> NDArray[np.bool_]:
        proven = self._proof.complete(opens, length)
        if self._spoiled and length == MINUTE_MS:
            proven &= ~np.isin(opens, list(self._spoiled))
        return proven

    def _prune(self) -> None:
        """Let go of what is final: of the ticks now, of the bar in an hour."""
        if self._floor == self._pruned_at:
            return
        self._pruned_at = self._floor
        for opened in [each for each in self._minutes if each < self._floor]:
            final = self._minutes.pop(opened).bar
            if final is not None and final.get_column("complete")[0]:
                self._finals[opened] = final
        self._spoiled.clear()
        oldest = self._floor - _REMEMBERED * MINUTE_MS
        self._finals = {opened: bar for opened, bar in self._finals.items() if opened >= oldest}
        while self._batches and next(iter(self._batches.values())) < self._floor:
            self._batches.pop(next(iter(self._batches)))
        self._proof.forget(self._floor)


def _ms(times: pl.Series) -> Ints:
    return times.to_numpy().view(np.int64)


def _minute(ms: int) -> int:
    return ms - ms % MINUTE_MS
