-- Leases due deadlines that have no current lease. No row stays locked during the lease.
WITH due AS (
    SELECT kind, aggregate
    FROM deadlines
    WHERE due_at <= now() AND leased_until < now()
    ORDER BY due_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
UPDATE deadlines AS d
SET leased_until = now() + $2::bigint * interval '1 millisecond'
FROM due
WHERE d.kind = due.kind AND d.aggregate = due.aggregate
RETURNING d.kind, d.aggregate, (extract(epoch FROM d.due_at) * 1000)::bigint, d.cause
