SELECT start_ts, end_ts, version
FROM underived FINAL
WHERE symbol = {symbol:String}
ORDER BY start_ts, end_ts
