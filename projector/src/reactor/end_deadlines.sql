-- Deletes fired deadlines, unless they were set to another time meanwhile.
DELETE FROM deadlines AS d
USING unnest($1::text[], $2::text[], $3::bigint[]) AS fired (kind, aggregate, due_ms)
WHERE d.kind = fired.kind
  AND d.aggregate = fired.aggregate
  AND (extract(epoch FROM d.due_at) * 1000)::bigint = fired.due_ms
