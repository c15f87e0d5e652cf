SELECT ts, origin, open, high, low, close, volume, vwap, trades, complete, revision, is_deleted, batch_id, ingested_at
FROM bars FINAL
WHERE symbol = {symbol:String}
    AND timeframe = {timeframe:String}
    AND source = {source:String}
    AND ts BETWEEN {first:DateTime64(3, 'UTC')} AND {last:DateTime64(3, 'UTC')}
ORDER BY ts
SETTINGS do_not_merge_across_partitions_select_final = 1
