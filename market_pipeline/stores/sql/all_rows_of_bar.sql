-- Everything that any source ever said of one bar and that merges have left.
SELECT source, origin, open, high, low, close, volume, vwap, trades, complete, revision, is_deleted, batch_id, ingested_at
FROM bars
WHERE symbol = {symbol:String} AND timeframe = {timeframe:String} AND ts = {ts:DateTime64(3, 'UTC')}
ORDER BY source, revision DESC, ingested_at DESC
