"""Messages of TICKS that are stored together: told apart and decoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from market_pipeline.bus.consumer import Delivery
from market_pipeline.bus.header_fields import unreadable
from market_pipeline.bus.tick_envelope import TickHeaders, decode_tick_batch
from market_pipeline.errors import UnreadableBatch
from market_pipeline.stores.ticks import TickBatch
from market_pipeline.stores.ticks.losses import TickLoss

# What parted two sessions of a symbol; the collector's own record (the bucket of losses) names the cause.
SESSION = "session"


@dataclass(slots=True)
class Unstorable:
    """A delivery that can never be stored, and why: `reason` as dead letters name it."""

    delivery: Delivery
    reason: str
    error: str


@dataclass(slots=True)
class Group:
    """Hold deliveries in the order of the stream.

    headers: of those whose envelope can be read, heartbeats too; seqs: theirs in the stream. batches: of
    those with ticks, and beside each its delivery and its headers. unstorable: the rest, which goes to dead letters.
    """

    deliveries: Sequence[Delivery]
    headers: list[TickHeaders] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    batches: list[TickBatch] = field(default_factory=list)
    sources: list[tuple[Delivery, TickHeaders]] = field(default_factory=list)
    unstorable: list[Unstorable] = field(default_factory=list)

    def told(self) -> list[tuple[int, TickHeaders]]:
        """Return sequence and headers of what is news of its symbol: of all but replayed dead letters."""
        pairs = zip(self.seqs, self.headers, strict=True)
        return [(seq, headers) for seq, headers in pairs if not headers.replayed]

    @property
    def last_seq(self) -> int:
        """Return the highest sequence in the stream."""
        return max(each.stream_seq for each in self.deliveries)

    def bringer(self, loss: TickLoss) -> Delivery:
        """Return the delivery that a loss was told by: the first of its symbol and session."""
        told_by = (loss.symbol, loss.session_id)
        seq = next(
            seq
            for seq, headers in zip(self.seqs, self.headers, strict=True)
            if (headers.symbol, headers.session_id) == told_by
        )
        return next(each for each in self.deliveries if each.stream_seq == seq)


def decode_group(deliveries: Sequence[Delivery]) -> Group:
    """Read envelopes and payloads; what cannot be read does not hold up the rest."""
    group = Group(deliveries)
    for delivery in deliveries:
        try:
            headers = TickHeaders.from_nats(delivery.headers)
            _check_texts(headers)
            frame = decode_tick_batch(delivery.payload, headers)
        except UnreadableBatch as error:
            group.unstorable.append(Unstorable(delivery, error.reason, str(error)))
            continue
        group.headers.append(headers)
        group.seqs.append(delivery.stream_seq)
        if headers.heartbeat:
            continue
        group.batches.append(
            TickBatch(
                headers.batch_id,
                headers.symbol,
                headers.epoch,
                frame,
                headers.collector_id,
                headers.session_id,
                headers.correlation_id,
                headers.replayed,
            )
        )
        group.sources.append((delivery, headers))
    return group


def _check_texts(headers: TickHeaders) -> None:
    """Refuse a NUL, which PostgreSQL does not take: a heartbeat's would be judged nowhere else."""
    for name in ("symbol", "collector_id", "session_id", "correlation_id"):
        text: str = getattr(headers, name)
        if "\0" in text:
            raise unreadable(f"{name} {text[:40]!r} holds a NUL")


def parted(headers: Iterable[TickHeaders]) -> list[TickLoss]:
    """Return what may be lost between sessions, once for each session: its first batch says so, and all after it."""
    losses = {
        (each.symbol, each.session_id): TickLoss(
            each.symbol, each.lost_from, each.session_started, SESSION, each.session_id, each.collector_id
        )
        for each in headers
        if each.lost_from is not None and each.lost_from < each.session_started
    }
    return list(losses.values())


def one_each(bad: Iterable[Unstorable]) -> list[Unstorable]:
    """Return the first reason of each delivery."""
    first: dict[int, Unstorable] = {}
    for each in bad:
        first.setdefault(each.delivery.stream_seq, each)
    return list(first.values())


def ticks_said(deliveries: Sequence[Delivery]) -> int:
    """Return the ticks that the headers promise, for sizing a group only."""
    said = (each.headers.get("Rows", "") for each in deliveries)
    return sum(int(rows) for rows in said if rows.isdecimal())
