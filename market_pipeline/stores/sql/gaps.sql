SELECT * EXCEPT is_deleted
FROM gaps FINAL
WHERE state IN {states:Array(String)}
    AND ({all_symbols:UInt8} OR symbol IN {symbols:Array(String)})
    AND start_ts < {end:DateTime64(3, 'UTC')}
    AND end_ts > {start:DateTime64(3, 'UTC')}
ORDER BY symbol, start_ts
