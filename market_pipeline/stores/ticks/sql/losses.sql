SELECT symbol, start_ts, end_ts, cause, session_id, collector_id, noted_at
FROM tick_losses
WHERE symbol = %(symbol)s AND start_ts < %(end)s AND end_ts > %(start)s
ORDER BY start_ts, end_ts, cause, session_id, collector_id
