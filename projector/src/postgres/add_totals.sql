-- Several projectors may add to the same rows and lock them until they commit. All lock in key order, to avoid
-- deadlocks.
INSERT INTO {table} AS total (key, version, units, amount_cents)
SELECT key, sum(events), sum(units), sum(amount_cents)
FROM unnest(
    $1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::text[]::numeric[], $6::text[]::numeric[], $7::bigint[], $8::bigint[]
) AS delta (key, partition, events, orders, units, amount_cents, first_ms, last_ms)
GROUP BY key
ORDER BY key
ON CONFLICT (key) DO UPDATE SET
    version = total.version + excluded.version,
    units = total.units + excluded.units,
    amount_cents = total.amount_cents + excluded.amount_cents
