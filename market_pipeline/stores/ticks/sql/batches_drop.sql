DELETE FROM tick_batches WHERE last_ts < %(cutoff)s
