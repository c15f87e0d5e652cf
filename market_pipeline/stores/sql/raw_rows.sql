SELECT count() AS rows FROM bars
