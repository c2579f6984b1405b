WITH gone AS (
    DELETE FROM parked WHERE view = $1 AND aggregate = $2 RETURNING partition, "offset", version, reason, at
)
INSERT INTO discarded (view, aggregate, partition, records, first_version, last_version, reason, parked_at)
SELECT
    $1, $2, min(partition), count(*), min(version), max(version), (array_agg(reason ORDER BY "offset"))[1], min(at)
FROM gone
HAVING count(*) > 0
