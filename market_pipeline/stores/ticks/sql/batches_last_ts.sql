SELECT max(last_ts) FROM tick_batches WHERE symbol = %(symbol)s
