SELECT max(revision) AS revision
FROM bars
WHERE symbol = {symbol:String}
    AND timeframe = {timeframe:String}
    AND source = {source:String}
    AND ts >= {start:DateTime64(3, 'UTC')}
    AND ts < {end:DateTime64(3, 'UTC')}
