-- What a span of time holds of some symbols, by symbol and timeframe; `due_rows`: of windows that opened before `due`.
SELECT
    symbol,
    timeframe,
    toUInt32(count()) AS rows,
    toUInt32(countIf(complete)) AS complete_rows,
    toUInt32(countIf(source = 'live_aggregated' OR origin = 'live_aggregated')) AS live_rows,
    toUInt32(countIf(ts < {due:DateTime64(3, 'UTC')})) AS due_rows,
    toUInt64(sumIf(trades, source = 'live_aggregated')) AS live_ticks,
    max(ts) AS last_ts,
    max(ingested_at) AS last_ingested_at
FROM bars_final
WHERE symbol IN {symbols:Array(String)}
    AND ts >= {start:DateTime64(3, 'UTC')}
    AND ts < {end:DateTime64(3, 'UTC')}
GROUP BY symbol, timeframe
ORDER BY symbol, timeframe
-- as in winners.sql
SETTINGS optimize_read_in_order = 0
