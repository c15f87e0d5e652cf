-- Requests for a gap that failed since the vendor last answered for it: after so many of them it is given up.
ALTER TABLE @table(gaps) ADD COLUMN IF NOT EXISTS failures UInt16 DEFAULT 0 AFTER attempts;

ALTER TABLE @view(gaps) ADD COLUMN IF NOT EXISTS failures UInt16 DEFAULT 0 AFTER attempts;
