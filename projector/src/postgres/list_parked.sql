SELECT
    view,
    aggregate,
    count(*) AS records,
    min(version) AS first_version,
    (array_agg(reason ORDER BY "offset"))[1] AS reason,
    (extract(epoch FROM min(at)) * 1000000)::bigint AS since_us
FROM (
    SELECT view, aggregate, "offset", version, reason, at FROM parked
    UNION ALL
    SELECT 'deadlines', aggregate, 0, 0, reason, due_at FROM deadlines WHERE reason IS NOT NULL
) AS parked
GROUP BY view, aggregate
HAVING ((extract(epoch FROM min(at)) * 1000000)::bigint, view, aggregate) > ($1::bigint, $2::text, $3::text)
ORDER BY since_us, view, aggregate
LIMIT $4
