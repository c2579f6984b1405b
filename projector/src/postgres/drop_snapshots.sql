-- Deletes up to $1 snapshots whose form has not been used for a week.
DELETE FROM state_snapshots AS kept
USING (
    SELECT s.form, s.aggregate
    FROM snapshot_forms AS f
    JOIN state_snapshots AS s ON s.form = f.form
    WHERE f.used_at < now() - interval '7 days'
    LIMIT $1
) AS unused
WHERE kept.form = unused.form AND kept.aggregate = unused.aggregate
