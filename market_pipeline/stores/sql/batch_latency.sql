-- Milliseconds between stages of the batches stored in [since, until), by the first time each was stored.
SELECT
    pair.1 AS stage,
    quantileExact(0.5)(pair.2) AS p50,
    quantileExact(0.95)(pair.2) AS p95,
    quantileExact(0.99)(pair.2) AS p99,
    max(pair.2) AS max
FROM
(
    SELECT arrayJoin([
        ('fetched_to_inserted', dateDiff('millisecond', fetched_at, inserted_at)),
        ('received_to_decoded', dateDiff('millisecond', received_at, decoded_at)),
        ('decoded_to_published', dateDiff('millisecond', decoded_at, published_at)),
        ('published_to_bridge', dateDiff('millisecond', published_at, bridge_received_at)),
        ('bridge_to_inserted', dateDiff('millisecond', bridge_received_at, inserted_at)),
        ('published_to_inserted', dateDiff('millisecond', published_at, inserted_at))
    ]) AS pair
    FROM
    (
        SELECT batch_id, fetched_at, received_at, decoded_at, published_at, bridge_received_at, inserted_at
        FROM ingest_batches
        WHERE outcome = 'stored'
            AND inserted_at >= {since:DateTime64(3, 'UTC')}
            AND inserted_at < {until:DateTime64(3, 'UTC')}
            AND ({run_id:String} = '' OR run_id = {run_id:String})
            AND ({stream:String} = '' OR stream = {stream:String})
        ORDER BY batch_id, inserted_at
        LIMIT 1 BY batch_id
    )
)
WHERE pair.2 IS NOT NULL
GROUP BY stage
ORDER BY stage
