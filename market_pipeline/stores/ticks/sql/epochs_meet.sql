-- In one order everywhere, so that two writers never wait for each other in a circle.
INSERT INTO tick_epochs (symbol, epoch)
SELECT symbol, -1 FROM unnest(%(symbols)s::text[]) AS symbol ORDER BY symbol
ON CONFLICT (symbol) DO NOTHING
