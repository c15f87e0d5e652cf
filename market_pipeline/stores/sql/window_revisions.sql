-- Raw rows: losers and tombstones count. So does the ranking, which says which of them win, by when it was set:
-- what is derived under a newer one must be a later revision, though no minute changed.
WITH
    (
        SELECT max(toUInt64OrZero(extract(comment, 'precedence set at (\\d+)')))
        FROM system.tables
        WHERE database = currentDatabase() AND name = 'bars_ranked'
    ) AS ranked_at
SELECT
    toDateTime64(toStartOfInterval(ts, INTERVAL 5 MINUTE), 3, 'UTC') AS window,
    greatest(max(bars.revision), ifNull(ranked_at, 0)) AS revision
FROM bars
WHERE symbol = {symbol:String}
    AND timeframe = '1m'
    AND ts >= {start:DateTime64(3, 'UTC')}
    AND ts < {end:DateTime64(3, 'UTC')}
GROUP BY window
ORDER BY window
