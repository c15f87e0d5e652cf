-- Raw rows: losers and tombstones count. A minute counts by when it was stored as well: of two minutes the one with the
-- smaller revision may be the one that changed last, and what is derived after that must be a later revision, too.
-- So does the ranking, which says which of them win, by when it was set:
-- what is derived under a newer one must be a later revision, though no minute changed.
WITH
    (
        SELECT max(toUInt64OrZero(extract(comment, 'precedence set at (\\d+)')))
        FROM system.tables
        WHERE database = currentDatabase() AND name = 'bars_ranked'
    ) AS ranked_at
SELECT
    toDateTime64(toStartOfInterval(ts, INTERVAL 5 MINUTE), 3, 'UTC') AS window,
    greatest(
        max(bars.revision),
        toUInt64(toUnixTimestamp64Milli(max(ingested_at))),
        ifNull(ranked_at, 0)
    ) AS revision
FROM bars
WHERE symbol = {symbol:String}
    AND timeframe = '1m'
    AND ts >= {start:DateTime64(3, 'UTC')}
    AND ts < {end:DateTime64(3, 'UTC')}
GROUP BY window
ORDER BY window
