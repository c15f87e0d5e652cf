-- FINAL would hide a bar whose last word is a tombstone.
SELECT ts, origin, open, high, low, close, volume, vwap, trades, complete, revision, is_deleted, batch_id, ingested_at
FROM bars
WHERE symbol = {symbol:String}
    AND timeframe = {timeframe:String}
    AND source = {source:String}
    AND ts BETWEEN {first:DateTime64(3, 'UTC')} AND {last:DateTime64(3, 'UTC')}
ORDER BY ts, revision DESC, ingested_at DESC
LIMIT 1 BY ts
