INSERT INTO state_snapshots AS kept (form, aggregate, version, state)
VALUES ($1, $2, $3, $4)
ON CONFLICT (form, aggregate) DO UPDATE
SET version = excluded.version, state = excluded.state
WHERE kept.version < excluded.version
