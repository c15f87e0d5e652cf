UPDATE tick_epochs SET epoch = %(epoch)s, first_ts = %(first_ts)s, overlap_until = %(overlap_until)s
WHERE symbol = %(symbol)s
