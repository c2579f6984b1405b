INSERT INTO parked (view, aggregate, partition, "offset", version, reason, record)
SELECT *
FROM unnest($1::text[], $2::text[], $3::int[], $4::bigint[], $5::bigint[], $6::text[], $7::bytea[])
