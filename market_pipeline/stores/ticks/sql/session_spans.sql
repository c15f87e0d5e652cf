-- Of each session that sent ticks of the symbol around the range: from when to when it is seen in what is stored.
-- By last_ts, which is indexed.
SELECT collector_id, session_id, epoch, min(first_ts) AS first_ts, max(last_ts) AS last_ts
FROM tick_batches
WHERE symbol = %(symbol)s AND last_ts >= %(start)s AND last_ts < %(end)s
GROUP BY collector_id, session_id, epoch
ORDER BY min(first_ts), collector_id, session_id, epoch
