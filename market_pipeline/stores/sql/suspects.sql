-- Winning bars that may be implausible; market.bars.implausible says which are, and why.
SELECT
    symbol, timeframe, ts, source, origin, open, high, low, close, volume, vwap, trades, complete, revision,
    toUInt8(0) AS is_deleted
FROM bars_final
WHERE symbol IN {symbols:Array(String)}
    AND timeframe IN {timeframes:Array(String)}
    AND ts >= {start:DateTime64(3, 'UTC')}
    AND ts < {end:DateTime64(3, 'UTC')}
    AND (
        NOT (low <= least(open, close) AND greatest(open, close) <= high AND low > 0)
        OR vwap <= 0
    )
ORDER BY symbol, timeframe, ts
LIMIT {limit:UInt32}
-- as in winners.sql
SETTINGS optimize_read_in_order = 0
