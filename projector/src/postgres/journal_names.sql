-- The next aggregates of the journal in the order of their names, and whether each has an event of version $2. Each
-- costs two looks into the index, however many events it has: an EXISTS might be planned as one scan of everything.
WITH RECURSIVE names (aggregate) AS (
    (SELECT aggregate FROM journal WHERE aggregate > $1 ORDER BY aggregate LIMIT 1)
    UNION ALL
    SELECT (SELECT j.aggregate FROM journal AS j WHERE j.aggregate > names.aggregate ORDER BY j.aggregate LIMIT 1)
    FROM names
    WHERE names.aggregate IS NOT NULL
)
SELECT
    aggregate,
    (SELECT j.version FROM journal AS j WHERE j.aggregate = names.aggregate AND j.version = $2) IS NOT NULL AS is_long
FROM names
WHERE aggregate IS NOT NULL
LIMIT $3
