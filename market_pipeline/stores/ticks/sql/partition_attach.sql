ALTER TABLE market_ticks ATTACH PARTITION {partition} FOR VALUES FROM ({start}) TO ({end})
