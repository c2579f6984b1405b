-- The journal as segments: every record of the log as it is, 1024 offsets of a partition in each. A segment that is closed
-- never changes. What came since lies in the tail, in runs as they were committed.
--
-- It is folded from the log's beginning once more, and so are the keys that took effect: what stood in the tables of before
-- had not the records themselves.
DROP TABLE journal;
TRUNCATE repeats;
DELETE FROM checkpoints WHERE view = 'journal';

-- A run of records, one element of each array a record. One that does not count, or changes no aggregate, has no aggregate
-- here; its version is 0.
CREATE TABLE journal_tail (
    partition int NOT NULL,
    segment bigint NOT NULL,
    first_offset bigint NOT NULL,
    offsets bigint[] COMPRESSION lz4 NOT NULL,
    aggregates text[] COMPRESSION lz4 COLLATE "C" NOT NULL,
    -- Of the aggregate, after the record's events; and how many those are.
    versions bigint[] COMPRESSION lz4 NOT NULL,
    events int[] COMPRESSION lz4 NOT NULL,
    records bytea[] COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (partition, first_offset)
);

-- A run stays in one piece, if it is not long.
ALTER TABLE journal_tail SET (toast_tuple_target = 8160);

-- Each one's hash covers the one before: SHA-256 over that hash, and of each record, in their order, the offset (8 bytes),
-- the length (4) and the bytes.
CREATE TABLE segments (
    partition int NOT NULL,
    segment bigint NOT NULL,
    records int NOT NULL,
    hash bytea NOT NULL,
    PRIMARY KEY (partition, segment)
);

-- The records of closed segments, by aggregate and version; those that have none come last.
CREATE TABLE segment_blocks (
    partition int NOT NULL,
    segment bigint NOT NULL,
    block int NOT NULL,
    offsets bigint[] COMPRESSION lz4 NOT NULL,
    aggregates text[] COMPRESSION lz4 COLLATE "C" NOT NULL,
    versions bigint[] COMPRESSION lz4 NOT NULL,
    events int[] COMPRESSION lz4 NOT NULL,
    records bytea[] COMPRESSION lz4 NOT NULL,
    PRIMARY KEY (partition, segment, block)
);

-- A block is about a page: it stays in one piece.
ALTER TABLE segment_blocks SET (toast_tuple_target = 8160);

-- Which blocks of a segment an aggregate is in, and how far they take it.
CREATE TABLE segment_index (
    aggregate text COLLATE "C" NOT NULL,
    segment bigint NOT NULL,
    first_block int NOT NULL,
    last_block int NOT NULL,
    last_version bigint NOT NULL,
    PRIMARY KEY (aggregate, segment)
);

-- The commits of an aggregate in one run of records that come after a version, oldest first. An UNNEST of these arrays would
-- put every record into rows first.
CREATE FUNCTION commits_in(
    offsets bigint[], aggregates text[], versions bigint[], events int[], records bytea[], of_aggregate text, after bigint
)
RETURNS TABLE (version bigint, event_count int, "offset" bigint, record bytea)
LANGUAGE plpgsql IMMUTABLE ROWS 10 AS $$
DECLARE
    place int;
BEGIN
    FOREACH place IN ARRAY array_positions(aggregates, of_aggregate) LOOP
        IF versions[place] > after THEN
            version := versions[place];
            event_count := events[place];
            "offset" := offsets[place];
            record := records[place];
            RETURN NEXT;
        END IF;
    END LOOP;
END
$$;

-- The commits of an aggregate that come after a version, oldest first, and how many at most: each segment is looked at only
-- if those before it did not have enough.
CREATE FUNCTION commits_of(of_aggregate text, of_partition int, after bigint, most bigint)
RETURNS TABLE (version bigint, events int, "offset" bigint, record bytea)
LANGUAGE plpgsql STABLE ROWS 10 AS $$
#variable_conflict use_column
DECLARE
    place record;
    given bigint;
BEGIN
    FOR place IN
        SELECT i.segment, i.first_block, i.last_block
        FROM segment_index AS i
        WHERE i.aggregate = of_aggregate AND i.last_version > after
        ORDER BY i.segment
    LOOP
        RETURN QUERY
            SELECT c.version, c.event_count, c."offset", c.record
            FROM segment_blocks AS b
            CROSS JOIN LATERAL
                commits_in(b.offsets, b.aggregates, b.versions, b.events, b.records, of_aggregate, after) AS c
            WHERE b.partition = of_partition
              AND b.segment = place.segment
              AND b.block BETWEEN place.first_block AND place.last_block
            ORDER BY c.version
            LIMIT most;
        GET DIAGNOSTICS given = ROW_COUNT;
        most := most - given;
        IF most <= 0 THEN
            RETURN;
        END IF;
    END LOOP;
    -- Segments close in their order: what lay before the last one is dead, if not gone.
    RETURN QUERY
        SELECT c.version, c.event_count, c."offset", c.record
        FROM journal_tail AS t
        CROSS JOIN LATERAL
            commits_in(t.offsets, t.aggregates, t.versions, t.events, t.records, of_aggregate, after) AS c
        WHERE t.partition = of_partition
          AND t.first_offset >= (
              SELECT coalesce(max(s.segment) + 1, 0) * 1024 FROM segments AS s WHERE s.partition = of_partition
          )
          AND of_aggregate = ANY (t.aggregates)
        ORDER BY c.version
        LIMIT most;
END
$$;

-- What counts of the whole log, a row a command.
CREATE VIEW journal_commits AS
SELECT runs.partition, r."offset", r.aggregate, r.version, r.events, r.record
FROM (
    SELECT partition, offsets, aggregates, versions, events, records FROM journal_tail
    UNION ALL
    SELECT partition, offsets, aggregates, versions, events, records FROM segment_blocks
) AS runs
CROSS JOIN LATERAL unnest(runs.offsets, runs.aggregates, runs.versions, runs.events, runs.records)
    AS r ("offset", aggregate, version, events, record)
WHERE r.aggregate IS NOT NULL;

-- The same, a row an event, for people who look. It reads everything.
CREATE VIEW journal AS
SELECT
    commits.aggregate,
    commits.version - commits.events + event.number AS version,
    event.event ->> 'type' AS type,
    event.event -> 'data' AS data,
    to_timestamp((commits.body ->> 'at_ms')::bigint / 1000.0) AS at,
    commits.partition,
    commits."offset",
    commits.body ->> 'command_id' AS command_id,
    commits.body ->> 'cause' AS cause,
    commits.body ->> 'trace' AS trace
FROM (
    SELECT c.*, convert_from(substr(c.record, 4), 'UTF8')::json -> 'commit' AS body FROM journal_commits AS c
) AS commits
CROSS JOIN LATERAL json_array_elements(commits.body -> 'events') WITH ORDINALITY AS event (event, number);
