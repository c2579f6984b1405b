INSERT INTO {table} AS part (key, partition, version, orders, units, amount_cents)
SELECT key, partition, events, orders, units, amount_cents
FROM unnest(
    $1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::text[]::numeric[], $6::text[]::numeric[], $7::bigint[], $8::bigint[]
) AS delta (key, partition, events, orders, units, amount_cents, first_ms, last_ms)
ON CONFLICT (key, partition) DO UPDATE SET
    version = part.version + excluded.version,
    orders = part.orders + excluded.orders,
    units = part.units + excluded.units,
    amount_cents = part.amount_cents + excluded.amount_cents
