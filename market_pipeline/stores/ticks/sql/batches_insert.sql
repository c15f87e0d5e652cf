INSERT INTO tick_batches (
    batch_id, epoch, first_ts, last_ts, first_received, rows, symbol, collector_id, session_id, correlation_id
)
SELECT batch_id, epoch, first_ts, last_ts, first_received, rows, symbol, collector_id, session_id, correlation_id
FROM unnest(
    %(batch_id)s::bigint[], %(epoch)s::bigint[], %(first_ts)s::timestamptz[], %(last_ts)s::timestamptz[],
    %(first_received)s::timestamptz[], %(rows)s::integer[], %(symbol)s::text[], %(collector_id)s::text[],
    %(session_id)s::text[], %(correlation_id)s::text[]
) WITH ORDINALITY AS batch (
    batch_id, epoch, first_ts, last_ts, first_received, rows, symbol, collector_id, session_id, correlation_id, place
)
ORDER BY place
ON CONFLICT (batch_id) DO NOTHING
RETURNING batch_id
