"""The tick bridge: ticks from the stream TICKS into the tick store."""

from market_pipeline.live.tick_bridge.service import TickBridgeService

__all__ = ["TickBridgeService"]
