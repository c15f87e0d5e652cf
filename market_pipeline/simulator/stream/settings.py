"""What can be set about the stream."""

from __future__ import annotations

import msgspec


class StreamSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hold the stream's settings; times in seconds. Those of pings concern connections made afterwards.

    `slow_reader_bytes`: a client that leaves more than this unread is cut off (never while the clock is advanced, for
    then the stream waits for its readers). `interval`: how often events are sent, one frame of at most
    `events_per_frame` at a time.
    """

    auth_timeout: float = 10.0
    connections_per_key: int = 1
    events_per_frame: int = 500
    interval: float = 0.01
    ping_interval: float = 20.0
    ping_timeout: float = 20.0
    slow_reader_bytes: int = 16 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.events_per_frame < 1 or self.interval <= 0 or self.ping_interval <= 0:
            raise ValueError("events_per_frame, interval and ping_interval must be above zero")
