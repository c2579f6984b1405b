INSERT INTO best_sellers_rows (key, version, units, amount_cents)
SELECT 'p-' || (n * 7919) % {rows}, 1, n % 13, n % 7 FROM generate_series(1, {rows}) AS n
ON CONFLICT DO NOTHING
