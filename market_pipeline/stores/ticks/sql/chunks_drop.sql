SELECT count(*) FROM drop_chunks('market_ticks', older_than => %(cutoff)s::timestamptz)
