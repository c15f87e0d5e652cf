SELECT * EXCEPT version
FROM vendor_requests FINAL
WHERE root_run_id = {root_run_id:String}
ORDER BY symbol, start_ts, requested_at
