INSERT INTO revenue_parts AS part (key, partition, version, orders, units, amount_cents)
SELECT * FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[])
ON CONFLICT (key, partition) DO UPDATE SET
    version = part.version + excluded.version,
    orders = part.orders + excluded.orders,
    units = part.units + excluded.units,
    amount_cents = part.amount_cents + excluded.amount_cents
