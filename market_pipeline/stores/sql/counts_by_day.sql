SELECT
    toDate32(ts) AS date,
    toUInt32(count()) AS rows,
    toUInt32(countIf(complete)) AS complete_rows,
    max(ingested_at) AS ingested_at
FROM bars_final
WHERE symbol = {symbol:String}
    AND timeframe = {timeframe:String}
    AND ts >= {start:DateTime64(3, 'UTC')}
    AND ts < {end:DateTime64(3, 'UTC')}
GROUP BY date
ORDER BY date
-- as in winners.sql
SETTINGS optimize_read_in_order = 0
