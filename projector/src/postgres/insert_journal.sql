INSERT INTO journal (aggregate, version, type, data, at, partition, "offset", command_id, cause, trace)
SELECT aggregate, version, type, data::json, to_timestamp(at_ms / 1000.0), partition, "offset", command_id, cause, trace
FROM unnest(
    $1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[],
    $6::int[], $7::bigint[], $8::text[], $9::text[], $10::text[]
) AS event (aggregate, version, type, data, at_ms, partition, "offset", command_id, cause, trace)
