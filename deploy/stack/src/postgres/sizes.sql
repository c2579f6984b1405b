\pset footer off
SELECT version();
SELECT name, setting FROM pg_settings WHERE source = 'command line' AND name !~ 'file|directory|directories' ORDER BY name;
SELECT relname, n_live_tup AS rows, n_dead_tup AS dead, pg_total_relation_size(relid) AS bytes, last_autovacuum, last_autoanalyze
FROM pg_stat_user_tables ORDER BY pg_total_relation_size(relid) DESC;
SELECT application_name, state, count(*) FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1, 2 ORDER BY 1, 2;
SELECT version AS migration, name FROM refinery_schema_history ORDER BY version DESC LIMIT 3;
