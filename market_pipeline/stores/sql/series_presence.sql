-- Whether anything, and which tombstones, are stored near the ranges; raw rows, so that an empty answer costs nothing.
SELECT symbol, timeframe, source, min(ts) AS first, max(ts) AS last, toUInt8(1) AS tombstones
FROM bars
WHERE symbol IN {symbols:Array(String)}
    AND timeframe IN {timeframes:Array(String)}
    AND source IN {sources:Array(String)}
    AND ts BETWEEN {first:DateTime64(3, 'UTC')} AND {last:DateTime64(3, 'UTC')}
    AND is_deleted = 1
GROUP BY symbol, timeframe, source
UNION ALL
(
    SELECT symbol, timeframe, source, ts AS first, ts AS last, toUInt8(0) AS tombstones
    FROM bars
    WHERE indexHint((symbol, timeframe, toYYYYMM(ts)) IN {months:Array(Tuple(String, String, UInt32))})
        AND symbol IN {symbols:Array(String)}
        AND timeframe IN {timeframes:Array(String)}
        AND source IN {sources:Array(String)}
        AND ts BETWEEN {first:DateTime64(3, 'UTC')} AND {last:DateTime64(3, 'UTC')}
    LIMIT 1
)
