-- Milliseconds until the bars of live flushes were stored in [since, until). Only lines that brought new bars and
-- nothing else have a latency: a revision is late by its nature, and what is delivered again was stored before. Derived
-- bars are made on purpose a while after their window's end, and at a start those of days again.
SELECT
    quantileExactIf(0.5)(received, received IS NOT NULL) AS received_to_inserted_p50,
    quantileExactIf(0.95)(received, received IS NOT NULL) AS received_to_inserted_p95,
    quantileExactIf(0.99)(received, received IS NOT NULL) AS received_to_inserted_p99,
    quantileExactIf(0.5)(ended, fresh) AS window_end_to_inserted_p50,
    quantileExactIf(0.95)(ended, fresh) AS window_end_to_inserted_p95,
    quantileExactIf(0.99)(ended, fresh) AS window_end_to_inserted_p99,
    uniqExact(batch_id) AS flushes,
    60000 * sum(written) / greatest(1, dateDiff('millisecond', {since:DateTime64(3, 'UTC')}, {until:DateTime64(3, 'UTC')}))
        AS rows_per_minute
FROM
(
    SELECT
        batch_id,
        new_rows > 0 AND new_rows = rows AS fresh,
        new_rows + restated_rows + withdrawn_rows AS written,
        if(fresh, dateDiff('millisecond', received_at, inserted_at), NULL) AS received,
        toUnixTimestamp64Milli(inserted_at) - toUnixTimestamp64Milli(end_ts)
            - transform(timeframe, {timeframes:Array(String)}, {lengths:Array(Int64)}, toInt64(0)) AS ended
    FROM ingest_batches
    WHERE stream = 'LIVE'
        AND source != 'derived'
        AND outcome = 'stored'
        AND inserted_at >= {since:DateTime64(3, 'UTC')}
        AND inserted_at < {until:DateTime64(3, 'UTC')}
)
