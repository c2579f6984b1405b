-- Live and dead rows of the tables that have most of both, as far as Postgres has counted them. Partitions are left out:
-- they are dropped, not vacuumed.
SELECT t.relname::text, t.n_live_tup, t.n_dead_tup
FROM pg_stat_user_tables AS t
JOIN pg_class AS c ON c.oid = t.relid
WHERE t.schemaname = current_schema() AND NOT c.relispartition
ORDER BY t.n_live_tup + t.n_dead_tup DESC, t.relname
LIMIT 12
