INSERT INTO snapshots AS kept (aggregate, form, version, state)
VALUES ($1, $2, $3, $4)
ON CONFLICT (aggregate) DO UPDATE
SET form = excluded.form, version = excluded.version, state = excluded.state
WHERE kept.version < excluded.version OR kept.form <> excluded.form
