INSERT INTO deadlines (kind, aggregate, due_at, cause)
SELECT kind, aggregate, to_timestamp(due_ms / 1000.0), cause
FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS alarm (kind, aggregate, due_ms, cause)
ON CONFLICT (kind, aggregate) DO UPDATE
SET due_at = excluded.due_at, cause = excluded.cause, leased_until = '-infinity', reason = NULL
