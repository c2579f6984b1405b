-- The next aggregates of the journal in name order, with their latest versions. An aggregate of the closed segments
-- costs two index lookups, however many events it has.
WITH RECURSIVE names (aggregate) AS (
    (SELECT aggregate FROM segment_index WHERE aggregate > $1 ORDER BY aggregate LIMIT 1)
    UNION ALL
    SELECT (SELECT i.aggregate FROM segment_index AS i WHERE i.aggregate > names.aggregate ORDER BY i.aggregate LIMIT 1)
    FROM names
    WHERE names.aggregate IS NOT NULL
),
closed AS (
    SELECT
        aggregate,
        (SELECT i.last_version FROM segment_index AS i WHERE i.aggregate = names.aggregate ORDER BY i.segment DESC LIMIT 1)
            AS version
    FROM names
    WHERE aggregate IS NOT NULL
    LIMIT $2
),
tail AS (
    SELECT r.aggregate, r.version
    FROM journal_tail
    CROSS JOIN LATERAL unnest(aggregates, versions) AS r (aggregate, version)
    WHERE r.aggregate > $1
)
SELECT aggregate, max(version)
FROM (SELECT aggregate, version FROM closed UNION ALL SELECT aggregate, version FROM tail) AS every
GROUP BY aggregate
ORDER BY aggregate COLLATE "C"
LIMIT $2
