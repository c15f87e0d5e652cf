SELECT count(*) FROM market_ticks WHERE symbol = %(symbol)s AND ts = %(ts)s AND batch_id = %(batch_id)s
