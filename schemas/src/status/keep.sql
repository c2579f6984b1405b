WITH forgotten AS (
    DELETE FROM instances
    WHERE instance IN (
        SELECT instance FROM instances WHERE seen < now() - interval '5 minutes' AND instance <> $1 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO instances (instance, service, report) VALUES ($1, $2, $3)
ON CONFLICT (instance) DO UPDATE SET service = excluded.service, report = excluded.report, seen = now()
