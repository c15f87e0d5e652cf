-- Whether anything is stored near the ranges: of what is new, and so of every live flush, nothing more is asked. The
-- hulls are those of series_digests.sql.
SELECT 1 AS found
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
SETTINGS max_threads = 1
