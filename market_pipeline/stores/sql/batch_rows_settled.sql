-- Rows of one timeframe that are stored or rejected of each batch id. A group that is delivered again begins, as a rule,
-- at the same sequence, and counts once.
SELECT batch_id, sum(rows) AS rows
FROM
(
    SELECT batch_id, stream_seq, rows
    FROM ingest_batches
    WHERE batch_id IN {batch_ids:Array(UInt64)} AND timeframe = {timeframe:String}
    ORDER BY batch_id, stream_seq, rows DESC
    LIMIT 1 BY batch_id, stream_seq
)
GROUP BY batch_id
