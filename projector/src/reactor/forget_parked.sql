DELETE FROM parked AS p
USING unnest($2::text[], $3::bigint[]) AS done (aggregate, "offset")
WHERE p.view = $1 AND p.aggregate = done.aggregate AND p."offset" = done."offset"
