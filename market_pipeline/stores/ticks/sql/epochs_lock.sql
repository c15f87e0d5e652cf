SELECT symbol, epoch, first_ts, overlap_until
FROM tick_epochs WHERE symbol = ANY(%(symbols)s) ORDER BY symbol FOR UPDATE
