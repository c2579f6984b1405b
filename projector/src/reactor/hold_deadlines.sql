-- Unless they were set to another time meanwhile. Without a reason they are fired again in a moment; with one, not before
-- an operator says so.
UPDATE deadlines AS d
SET reason = held.reason,
    leased_until = CASE WHEN held.reason IS NULL THEN now() + $5::bigint * interval '1 millisecond' ELSE 'infinity' END
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS held (kind, aggregate, due_ms, reason)
WHERE d.kind = held.kind
  AND d.aggregate = held.aggregate
  AND (extract(epoch FROM d.due_at) * 1000)::bigint = held.due_ms
