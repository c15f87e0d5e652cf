-- By the index, one probe a symbol: the lines are many.
SELECT known.symbol, last.last_ts
FROM tick_epochs AS known
CROSS JOIN LATERAL (SELECT max(b.last_ts) AS last_ts FROM tick_batches AS b WHERE b.symbol = known.symbol) AS last
WHERE last.last_ts IS NOT NULL
ORDER BY known.symbol
