-- Tables named as a day's partition, attached or not.
SELECT child.relname AS name, i.inhrelid IS NOT NULL AS attached, coalesce(i.inhdetachpending, false) AS detaching
FROM pg_class AS child
LEFT JOIN pg_inherits AS i ON i.inhrelid = child.oid AND i.inhparent = to_regclass('market_ticks')
WHERE
    child.relkind = 'r'
    AND child.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = to_regclass('market_ticks'))
    AND child.relname ~ '^market_ticks_[0-9]{8}$'
ORDER BY child.relname
