SELECT
    view,
    aggregate,
    count(*) AS records,
    min(version) AS first_version,
    (array_agg(reason ORDER BY "offset"))[1] AS reason,
    (extract(epoch FROM min(at)) * 1000)::bigint AS since_ms
FROM parked
GROUP BY view, aggregate
ORDER BY min(at), view, aggregate
LIMIT 1000
