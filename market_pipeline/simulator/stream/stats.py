"""What the stream did, counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

from market_pipeline.simulator.stream.outbox import Outgoing


class StreamStats:
    """Count since the start, or since it was cleared. For the event loop's thread only."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.sessions: Counter[str] = Counter()
        self.acknowledged = 0
        self.sent: Counter[str] = Counter()
        self.lost = 0
        self.frames = 0
        self.bytes = 0

    def wrote(self, item: Outgoing) -> None:
        """Count a frame that was written."""
        self.sent.update(item.events)
        self.frames += 1
        self.bytes += len(item.frame)

    def lose(self, events: int) -> None:
        """Count events that were due to a subscriber and never written."""
        self.lost += events

    def shown(self) -> dict[str, Any]:
        """Return the counters: `sessions` by what became of them, `sent` events by lane ("C.EUR/USD"), totals."""
        return {
            "sessions": dict(self.sessions),
            "acknowledged": self.acknowledged,
            "sent": dict(sorted(self.sent.items())),
            "sent_total": self.sent.total(),
            "lost": self.lost,
            "frames": self.frames,
            "bytes": self.bytes,
        }
