SELECT dataset, series, ts, value
FROM external_final
WHERE dataset = {dataset:String}
    AND ({series:String} = '' OR series = {series:String})
    AND ts >= {start:DateTime64(3, 'UTC')}
    AND ts < {end:DateTime64(3, 'UTC')}
ORDER BY series, ts
