INSERT INTO revenue_by_minute_parts (key, partition, version, orders, units, amount_cents)
SELECT to_char(timestamp '1997-01-01' + n * interval '1 minute', 'YYYY-MM-DD"T"HH24:MI'), partition, 1, 1, 1, n
FROM generate_series(1, {rows}) AS n, generate_series(0, 2) AS partition
