-- Corrections by the UTC day on which they became known. Only series with one in the range are compared; of them all
-- versions, since the one that was replaced may have become known long before.
SELECT
    toDate32(bar_changes.known_at) AS date,
    symbol,
    timeframe,
    source,
    toUInt32(countIf(kind = 'restated')) AS restated,
    toUInt32(countIf(kind = 'demoted')) AS demoted,
    toUInt32(countIf(kind = 'withdrawn')) AS withdrawn,
    toUInt32(countIf(kind = 'returned')) AS returned,
    toUInt32(countIf(kind = 'completed')) AS completed,
    maxOrNullIf(abs(close / was_close - 1), comparable AND was_close > 0) AS largest_close,
    maxOrNullIf(abs(high / was_high - 1), comparable AND was_high > 0) AS largest_high,
    maxOrNullIf(abs(low / was_low - 1), comparable AND was_low > 0) AS largest_low,
    argMaxOrNullIf(ts, size, comparable) AS largest_ts,
    argMaxOrNullIf(bar_changes.batch_id, size, comparable) AS largest_batch,
    min(ts) AS first_ts,
    max(ts) AS last_ts,
    min(bar_changes.known_at) AS first_known_at,
    max(bar_changes.known_at) AS last_known_at,
    toUInt32(uniqExact(bar_changes.batch_id)) AS batches
FROM
(
    SELECT
        *,
        was_complete AND kind IN ('restated', 'demoted') AS comparable,
        greatest(
            if(was_close > 0, abs(close / was_close - 1), 0),
            if(was_high > 0, abs(high / was_high - 1), 0),
            if(was_low > 0, abs(low / was_low - 1), 0)
        ) AS size
    FROM bar_changes
    WHERE (symbol, timeframe) GLOBAL IN
        (
            SELECT symbol, timeframe
            FROM bar_revisions
            WHERE known_at >= {start:DateTime64(3, 'UTC')} AND known_at < {end:DateTime64(3, 'UTC')}
        )
        AND ts GLOBAL IN
        (
            SELECT ts
            FROM bar_revisions
            WHERE known_at >= {start:DateTime64(3, 'UTC')} AND known_at < {end:DateTime64(3, 'UTC')}
        )
) AS bar_changes
WHERE bar_changes.known_at >= {start:DateTime64(3, 'UTC')} AND bar_changes.known_at < {end:DateTime64(3, 'UTC')}
GROUP BY date, symbol, timeframe, source
ORDER BY date DESC, symbol, timeframe, source
