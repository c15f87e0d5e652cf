"""The collector: the vendor's live quotes and trades into JetStream, and a record of what may have been lost."""

from market_pipeline.live.collector.health import CollectorHealth, StreamHealth
from market_pipeline.live.collector.service import Collector

__all__ = ["Collector", "CollectorHealth", "StreamHealth"]
