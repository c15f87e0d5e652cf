-- Raw rows: where a source ever wrote is wanted, and a tombstone was written too.
SELECT bars.symbol AS symbol, min(bars.ts) AS first_ts, max(bars.ts) AS last_ts
FROM bars
WHERE bars.symbol IN {symbols:Array(String)}
    AND bars.timeframe = {timeframe:String}
    AND bars.source = {source:String}
    AND bars.ts >= {start:DateTime64(3, 'UTC')}
    AND bars.ts < {end:DateTime64(3, 'UTC')}
GROUP BY symbol
ORDER BY symbol
