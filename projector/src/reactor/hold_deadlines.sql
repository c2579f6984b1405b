-- Postpones deadlines, unless they were set to another time meanwhile. One without a reason is fired again after $5 ms;
-- one with a reason once it has been due for twice as long, after a minute at least and an hour at most.
UPDATE deadlines AS d
SET reason = held.reason,
    leased_until = now() + CASE
        WHEN held.reason IS NULL THEN $5::bigint * interval '1 millisecond'
        ELSE (0.9 + 0.2 * random()) * least(greatest(now() - d.due_at, interval '1 minute'), interval '1 hour')
    END
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS held (kind, aggregate, due_ms, reason)
WHERE d.kind = held.kind
  AND d.aggregate = held.aggregate
  AND (extract(epoch FROM d.due_at) * 1000)::bigint = held.due_ms
