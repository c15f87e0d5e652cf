SELECT
    date_trunc('minute', ts, 'UTC') AS ts,
    count(*) FILTER (WHERE kind = 'q') AS quotes,
    count(*) FILTER (WHERE kind = 't') AS trades
FROM market_ticks
WHERE symbol = %(symbol)s AND ts >= %(start)s AND ts < %(end)s
GROUP BY 1 ORDER BY 1
