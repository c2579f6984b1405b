-- When a reactor tries again what it parked. Whoever does moves it, so that no two try at once.
ALTER TABLE parked ADD COLUMN retry_at timestamptz NOT NULL DEFAULT now() + interval '1 minute';

CREATE INDEX parked_retry_at ON parked (retry_at) WHERE view = 'reactor';

-- Deadlines that failed come again after a while, too. They were leased for ever before.
UPDATE deadlines SET leased_until = now() + random() * interval '1 minute' WHERE reason IS NOT NULL;
