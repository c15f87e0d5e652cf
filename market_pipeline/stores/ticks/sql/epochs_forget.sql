UPDATE tick_epochs SET epoch = -1 WHERE symbol = ANY(%(symbols)s)
