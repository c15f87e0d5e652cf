SELECT
    symbol,
    timeframe,
    source,
    toUInt32(count()) AS batches,
    toUInt32(countIf(outcome = 'rejected')) AS rejected_batches,
    sum(rows) AS rows,
    sum(new_rows) AS new_rows,
    sum(restated_rows) AS restated_rows,
    sum(withdrawn_rows) AS withdrawn_rows,
    sum(unchanged_rows) AS unchanged_rows,
    sum(superseded_rows) AS superseded_rows,
    sum(rejected_rows) AS rejected_rows,
    min(start_ts) AS first_ts,
    max(end_ts) AS last_ts,
    max(inserted_at) AS last_inserted_at
FROM
(
    SELECT *
    FROM ingest_batches
    WHERE run_id = {run_id:String}
    ORDER BY batch_id, outcome = 'stored' DESC, inserted_at
    LIMIT 1 BY batch_id
)
GROUP BY symbol, timeframe, source
ORDER BY symbol, timeframe, source
