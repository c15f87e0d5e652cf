SELECT start_ts, end_ts
FROM vendor_requests FINAL
WHERE symbol = {symbol:String} AND root_run_id = {root_run_id:String} AND outcome IN ('ok', 'empty')
ORDER BY start_ts
