"""The aggregator: ticks from TICKS to live bars of 1s and 1m, and the coarser bars that closed minutes touch."""

from market_pipeline.live.aggregator.deriver import LiveDeriver
from market_pipeline.live.aggregator.health import AggregatorHealth
from market_pipeline.live.aggregator.service import Aggregator

__all__ = ["Aggregator", "AggregatorHealth", "LiveDeriver"]
