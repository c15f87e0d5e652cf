SELECT add_retention_policy('market_ticks', make_interval(days => %(days)s))
