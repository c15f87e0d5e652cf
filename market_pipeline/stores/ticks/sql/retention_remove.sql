SELECT remove_retention_policy('market_ticks', if_exists => true)
