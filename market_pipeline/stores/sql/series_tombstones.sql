-- Where tombstones are stored near the ranges: their hull by series; raw rows. The hulls are those of
-- series_digests.sql.
SELECT symbol, timeframe, source, min(ts) AS first, max(ts) AS last
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
