-- Whether anything, and which tombstones, are stored near the ranges; raw rows, so that an empty answer costs nothing.
-- The hulls are those of series_digests.sql.
SELECT symbol, timeframe, source, min(ts) AS first, max(ts) AS last, toUInt8(1) AS tombstones
FROM bars
WHERE (
        /* hull */ (
            symbol IN {symbols_0:Array(String)}
            AND timeframe IN {timeframes_0:Array(String)}
            AND ts BETWEEN {first_0:DateTime64(3, 'UTC')} AND {last_0:DateTime64(3, 'UTC')}
        ) /* hull */
    )
    AND source IN {sources:Array(String)}
    AND is_deleted = 1
GROUP BY symbol, timeframe, source
UNION ALL
(
    SELECT symbol, timeframe, source, ts AS first, ts AS last, toUInt8(0) AS tombstones
    FROM bars
    WHERE (
            /* hull */ (
                symbol IN {symbols_0:Array(String)}
                AND timeframe IN {timeframes_0:Array(String)}
                AND ts BETWEEN {first_0:DateTime64(3, 'UTC')} AND {last_0:DateTime64(3, 'UTC')}
            ) /* hull */
        )
        AND source IN {sources:Array(String)}
    LIMIT 1
)
