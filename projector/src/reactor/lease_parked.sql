-- Selects parked records that are due for a retry. Each is due again once it has been parked for twice as long, after a
-- minute at least and an hour at most. Placed orders are retried separately.
WITH due AS (
    SELECT aggregate, "offset"
    FROM parked
    WHERE view = 'reactor' AND retry_at <= now() AND position('"order.placed.'::bytea IN record) = 0
    ORDER BY retry_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
UPDATE parked AS p
SET retry_at = now() + (0.9 + 0.2 * random()) * least(greatest(now() - p.at, interval '1 minute'), interval '1 hour')
FROM due
WHERE p.view = 'reactor' AND p.aggregate = due.aggregate AND p."offset" = due."offset"
RETURNING p.partition, p."offset", p.record
