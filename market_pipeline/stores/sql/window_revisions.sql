-- Raw rows: losers and tombstones count.
SELECT toDateTime64(toStartOfInterval(ts, INTERVAL 5 MINUTE), 3, 'UTC') AS window, max(revision) AS revision
FROM bars
WHERE symbol = {symbol:String}
    AND timeframe = '1m'
    AND ts >= {start:DateTime64(3, 'UTC')}
    AND ts < {end:DateTime64(3, 'UTC')}
GROUP BY window
ORDER BY window
