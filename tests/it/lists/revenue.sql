INSERT INTO revenue_parts (key, partition, version, orders, units, amount_cents)
SELECT to_char(date '1997-01-01' + n, 'YYYY-MM-DD'), partition, 1, 1, 1, n
FROM generate_series(0, {rows} - 1) AS n, generate_series(0, 2) AS partition
