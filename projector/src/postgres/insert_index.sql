INSERT INTO segment_index (segment, aggregate, first_block, last_block, last_version)
SELECT $1, aggregate, first_block, last_block, last_version
FROM unnest($2::text[], $3::int[], $4::int[], $5::bigint[]) AS new (aggregate, first_block, last_block, last_version)
