INSERT INTO snapshot_forms (form, used_at)
VALUES ($1, now())
ON CONFLICT (form) DO UPDATE SET used_at = excluded.used_at
