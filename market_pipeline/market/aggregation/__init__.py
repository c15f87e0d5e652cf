"""Make bars from ticks and coarser bars from finer ones: the one fold of the product."""

from market_pipeline.market.aggregation.derive import derive
from market_pipeline.market.aggregation.fold import fold
from market_pipeline.market.aggregation.ticks import bars_from_quotes, bars_from_trades

__all__ = ["bars_from_quotes", "bars_from_trades", "derive", "fold"]
