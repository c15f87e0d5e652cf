-- Live bars of one timeframe that opened at `since` or later, by symbol, whether or not they win.
SELECT
    symbol,
    toUInt32(count()) AS rows,
    toUInt32(countIf(complete)) AS complete_rows,
    toUInt64(sum(trades)) AS ticks,
    max(ts) AS last_ts
FROM bars FINAL
WHERE source = 'live_aggregated'
    AND timeframe = {timeframe:String}
    AND ts >= {since:DateTime64(3, 'UTC')}
GROUP BY symbol
ORDER BY symbol
