INSERT INTO tick_losses (symbol, start_ts, end_ts, cause, session_id, collector_id)
SELECT symbol, start_ts, max(end_ts), cause, session_id, collector_id
FROM unnest(
    %(symbol)s::text[], %(start)s::timestamptz[], %(end)s::timestamptz[], %(cause)s::text[],
    %(session_id)s::text[], %(collector_id)s::text[]
) AS loss (symbol, start_ts, end_ts, cause, session_id, collector_id)
GROUP BY symbol, start_ts, cause, session_id, collector_id
ORDER BY symbol, start_ts, cause, session_id, collector_id
ON CONFLICT (symbol, start_ts, cause, session_id, collector_id)
DO UPDATE SET end_ts = greatest(tick_losses.end_ts, excluded.end_ts)
