DELETE FROM deadlines AS d
USING unnest($1::text[], $2::text[]) AS alarm (kind, aggregate)
WHERE d.kind = alarm.kind AND d.aggregate = alarm.aggregate
