"""The bars under way of all symbols of an aggregator: batches in, bars out, and what a checkpoint holds of them."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace

import structlog

from market_pipeline.bus.envelope import EncodedBatch, encode_batches, new_batch_id
from market_pipeline.bus.losses import LossCause, LossInterval
from market_pipeline.bus.subjects import untoken
from market_pipeline.bus.tick_envelope import TickHeaders, decode_tick_columns
from market_pipeline.bus.tick_numbers import BatchNumbers, Numbered
from market_pipeline.bus.tick_reader import StreamSpan, TickMessage
from market_pipeline.errors import InputError, UnreadableBatch
from market_pipeline.market.instruments import Instrument
from market_pipeline.market.live_bars import LiveBars
from market_pipeline.market.live_facts import BatchFacts, LiveCounts, LiveRules, SymbolState, first_state
from market_pipeline.market.sessions import MINUTE_MS
from market_pipeline.market.timeframes import from_ms, to_ms

log = structlog.get_logger(__name__)

STAGE_RECEIVED, STAGE_CLOSED = "received", "decoded"


@dataclass(frozen=True, slots=True)
class BookState:
    """Hold what a restart needs: the state of each symbol; batches up to `through_seq` made the bars published.

    numbers: the last batch of each symbol up to `through_seq`.
    """

    through_seq: int
    symbols: dict[str, SymbolState] = field(default_factory=dict)
    numbers: dict[str, Numbered] = field(default_factory=dict)


@dataclass(slots=True)
class _Lane:
    bars: LiveBars
    heard_at: int  # epoch ms at which a batch was taken
    numbered_seq: int = 0  # up to this batch a checkpoint knows whether one was missing
    new: bool = False  # nothing is known of it from a checkpoint
    lost_since: int | None = None  # no batch since then was taken
    lost_cause: LossCause = "expired"


class Book:
    """Hold the bars under way of some symbols; nothing here waits or talks to anybody.

    next_seq: where in TICKS to go on. hold_until: until this sequence is taken, what is made was published before, or
    is not whole yet. unreadable: batches that could not be read.
    """

    def __init__(
        self,
        instruments: Sequence[Instrument],
        rules: LiveRules,
        known: BookState | None,
        span: StreamSpan,
        now: int,
    ) -> None:
        """Go on from a checkpoint (None: from the first batch that the stream still holds)."""
        # With the first message of all still there, nothing went before.
        whole = span.first_seq <= 1
        if known is not None and known.through_seq > span.last_seq:
            log.warning("ticks_stream_is_another", checkpoint=known.through_seq, last_seq=span.last_seq)
            known, whole = None, False
        self.hold_until = known.through_seq if known is not None else 0
        keys = {each.key for each in instruments}
        given = known.numbers if known is not None else {}
        self._numbers = BatchNumbers({key: each for key, each in given.items() if key in keys})
        self.unreadable = 0
        self._losses: list[LossInterval] = []
        self._lanes = {each.key: _lane(each, rules, known, span, whole, now) for each in instruments}
        self.next_seq = min(lane.bars.from_seq for lane in self._lanes.values())

    def take(self, messages: Iterable[TickMessage], now: int) -> None:
        """Take batches in the order of the stream."""
        for message in messages:
            self.next_seq = message.seq + 1
            if message.after_expired:
                self._expire()
            try:
                headers = TickHeaders.from_nats(message.headers)
                lane = self._lanes.get(headers.symbol)
                if lane is None:
                    raise UnreadableBatch(f"{message.subject} brings ticks of {headers.symbol}")
                if message.seq < lane.bars.from_seq:
                    continue
                columns = decode_tick_columns(message.payload, headers)
            except UnreadableBatch as error:
                self._skip(message, error)
                continue
            if message.seq > lane.numbered_seq:
                self._note_missing(lane, headers)
            facts = batch_facts(message.seq, headers)
            if lane.lost_since is not None:
                self._lose(headers.symbol, lane.lost_since, facts.alive, lane.lost_cause)
                lane.lost_since = None
            lane.heard_at = now
            lane.bars.take(facts, None if columns is None else columns.arrays())

    def close_silent(self, now: int, silent_ms: int) -> None:
        """Close what ended long ago in symbols of which no batch has come for `silent_ms`, unproven."""
        for lane in self._lanes.values():
            if now - lane.heard_at > silent_ms and lane.bars.waiting:
                lane.bars.close(now - silent_ms)

    def due(self, now: int, run_id: str) -> list[EncodedBatch]:
        """Return the bars that closed or changed since, as batches: one flush, with one batch id and correlation id."""
        batch_id, correlation_id = new_batch_id(), f"live-{secrets.token_hex(8)}"
        batches: list[EncodedBatch] = []
        for lane in self._lanes.values():
            for frame in lane.bars.due(now).values():
                stages = {STAGE_RECEIVED: lane.bars.received, STAGE_CLOSED: now} if lane.bars.received else {}
                batches += encode_batches(
                    frame, correlation_id=correlation_id, run_id=run_id, stages=stages, batch_id=batch_id
                )
            for minute, ticks in lane.bars.late_minutes().items():
                log.warning("ticks_too_late", symbol=lane.bars.symbol, minute=from_ms(minute).isoformat(), ticks=ticks)
                self._lose(lane.bars.symbol, minute, minute + MINUTE_MS, "late")
        return batches

    def losses(self) -> list[LossInterval]:
        """Return, once, the time that has to be repaired."""
        losses, self._losses = self._losses, []
        return losses

    def state(self) -> BookState:
        """Return what a restart needs; to be kept once everything that `due` returned is published."""
        symbols = {key: lane.bars.state(self.next_seq) for key, lane in self._lanes.items()}
        return BookState(self.next_seq - 1, symbols, dict(self._numbers.last))

    def behind_s(self, now: int) -> float | None:
        """Return the age of what is proven of the slowest symbol, in seconds."""
        watermarks = [lane.bars.watermark for lane in self._lanes.values() if lane.bars.watermark]
        return round((now - min(watermarks)) / 1000, 3) if watermarks else None

    def counts(self) -> LiveCounts:
        """Return the sum over the symbols."""
        total = LiveCounts()
        for lane in self._lanes.values():
            add_counts(total, lane.bars.counts)
        return total

    def _note_missing(self, lane: _Lane, headers: TickHeaders) -> None:
        """Batches that never came are known by their numbers: their time is not complete, and to be repaired."""
        symbol = headers.symbol
        if lane.lost_since is not None:
            self._numbers.forget([symbol])  # all that since then is told as lost
        if lane.new and self._numbers.begins_later(headers):
            lane.bars.interrupt()
        missed = self._numbers.missed(headers)
        if missed is None:
            return
        log.warning("tick_batches_missing", symbol=symbol, before=headers.number, session_id=headers.session_id)
        lane.bars.lose(to_ms(missed[0]), to_ms(missed[1]))
        self._losses.append(LossInterval(symbol, *missed, "missing", headers.session_id))

    def _expire(self) -> None:
        """Batches left the stream before they were taken, of whichever symbols: none is complete until the next one."""
        log.warning("ticks_expired_untaken", before=self.next_seq - 1)
        for lane in self._lanes.values():
            if lane.lost_since is None and lane.bars.watermark:
                lane.lost_since, lane.lost_cause = lane.bars.watermark, "expired"
            lane.bars.interrupt()

    def _skip(self, message: TickMessage, error: UnreadableBatch) -> None:
        """Pass over a batch that cannot be read; whichever ticks it held, its symbol is not complete."""
        self.unreadable += 1
        log.warning("tick_batch_unreadable", subject=message.subject, sequence=message.seq, error=str(error))
        try:
            lane = self._lanes.get(untoken(message.subject.split(".")[1]))
        except InputError:
            lane = None
        if lane is not None and message.seq >= lane.bars.from_seq:
            if lane.lost_since is None and lane.bars.watermark:
                lane.lost_since, lane.lost_cause = lane.bars.watermark, "unreadable"
            lane.bars.interrupt()

    def _lose(self, symbol: str, start: int, end: int, cause: LossCause) -> None:
        if end > start:
            self._losses.append(LossInterval(symbol, from_ms(start), from_ms(end), cause))


def _lane(
    instrument: Instrument, rules: LiveRules, known: BookState | None, span: StreamSpan, whole: bool, now: int
) -> _Lane:
    state = known.symbols.get(instrument.key) if known is not None else None
    new = state is None
    if state is None:
        state = first_state(max(1, span.first_seq), seen_from=0 if whole else None)
    if state.from_seq >= span.first_seq:
        return _Lane(LiveBars(instrument, rules, state), now, numbered_seq=state.through_seq, new=new)
    # Made of what is left, the bars under way would be worse than those published: they are left to repair.
    log.warning("ticks_expired", symbol=instrument.key, wanted=state.from_seq, first_seq=span.first_seq)
    proven = max((claim[2] for claim in state.proof.claims), default=state.floor)
    floor = max(state.floor, proven - proven % MINUTE_MS + MINUTE_MS)
    lane = _Lane(LiveBars(instrument, rules, replace(state, from_seq=span.first_seq, floor=floor)), now)
    lane.bars.interrupt()
    lane.lost_since = state.floor
    return lane


def batch_facts(seq: int, headers: TickHeaders) -> BatchFacts:
    """Return what a batch says of itself, as the pure part takes it."""
    return BatchFacts(
        seq=seq,
        batch_id=headers.batch_id,
        epoch=headers.epoch,
        session_id=headers.session_id,
        session_started=to_ms(headers.session_started),
        proven=to_ms(headers.proven_until),
        alive=to_ms(headers.alive_at),
        lost_from=None if headers.lost_from is None else to_ms(headers.lost_from),
        received=headers.stages.get("received", 0),
    )


def add_counts(total: LiveCounts, more: LiveCounts) -> None:
    """Add counts to others."""
    for each in fields(LiveCounts):
        setattr(total, each.name, getattr(total, each.name) + getattr(more, each.name))
