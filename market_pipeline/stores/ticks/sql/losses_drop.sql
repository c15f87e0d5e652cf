DELETE FROM tick_losses WHERE end_ts <= %(cutoff)s
