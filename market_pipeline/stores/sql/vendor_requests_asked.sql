SELECT start_ts, end_ts, requested_at
FROM vendor_requests FINAL
WHERE symbol = {symbol:String}
    AND outcome IN ('ok', 'empty')
    AND start_ts < {end:DateTime64(3, 'UTC')}
    AND end_ts > {start:DateTime64(3, 'UTC')}
ORDER BY start_ts
