"""Polygon.io, now Massive: live quotes and trades over WebSocket, one connection a market and key."""

from market_pipeline.vendors.polygon.stream.client import PolygonStream
from market_pipeline.vendors.polygon.stream.events import StreamTick
from market_pipeline.vendors.polygon.stream.listener import StreamCounters, StreamListener
from market_pipeline.vendors.polygon.stream.names import MARKETS, Market, Topics, stream_url, topics_of

__all__ = [
    "MARKETS",
    "Market",
    "PolygonStream",
    "StreamCounters",
    "StreamListener",
    "StreamTick",
    "Topics",
    "stream_url",
    "topics_of",
]
