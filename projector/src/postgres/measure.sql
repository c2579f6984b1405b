-- Deadlines that are overdue, at most 10,000, and the seconds since the first of them was due; Postgres's clock in seconds
-- since 1970; the transaction that holds back vacuum, and the number of later ones. The last two need no rights: the
-- start of another account's transaction would.
SELECT
    (
        SELECT count(*) FROM (
            SELECT FROM deadlines WHERE due_at <= now() AND reason IS NULL LIMIT 10000
        ) AS overdue
    ),
    coalesce(
        (
            SELECT extract(epoch FROM now() - due_at) FROM deadlines
            WHERE due_at <= now() AND reason IS NULL ORDER BY due_at LIMIT 1
        ),
        0
    )::float8,
    extract(epoch FROM clock_timestamp())::float8,
    holds.xid::text,
    coalesce(age(holds.xid), 0)::bigint
FROM (SELECT) AS always
LEFT JOIN LATERAL (
    SELECT xid FROM (
        SELECT unnest(ARRAY[backend_xid, backend_xmin]) AS xid
        FROM pg_stat_activity
        -- Autovacuum has no account, and holds nothing back; a replica's connection has no database.
        WHERE usesysid IS NOT NULL AND pid <> pg_backend_pid() AND (datid IS NULL OR datname = current_database())
        UNION ALL
        SELECT transaction FROM pg_prepared_xacts WHERE database = current_database()
        UNION ALL
        SELECT xmin FROM pg_replication_slots
    ) AS open
    WHERE xid IS NOT NULL
    ORDER BY age(xid) DESC
    LIMIT 1
) AS holds ON true
