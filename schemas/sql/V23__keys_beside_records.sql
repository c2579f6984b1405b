-- Keys that tell a time lie with the journal: in the tail beside their records, and in one array a closed segment. A row of
-- `repeats` is written only for a key that tells no time, or one far from its command's.
--
-- The columns that this drops are in the record as well. Without them, a command-api of before cannot read keys: it refuses
-- those that it does not know, where it would have taken repeats for new commands.
--
-- In the order of a commit's own locks.
LOCK TABLE journal_tail, repeats IN ACCESS EXCLUSIVE MODE;
ALTER TABLE repeats DROP COLUMN fingerprint, DROP COLUMN version, DROP COLUMN events;

-- The first 64 bits of the SHA-256 of a name.
CREATE FUNCTION name_hash(name text) RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN ('x' || encode(substr(sha256(convert_to(name, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint;

-- To find an aggregate in a run by its name takes a comparison of texts a record.
ALTER TABLE journal_tail
    -- 0 where there is no aggregate.
    ADD COLUMN names bigint[] COMPRESSION lz4,
    -- See schemas::tables::repeat_key. Null where it is not kept here.
    ADD COLUMN keys uuid[] COMPRESSION lz4,
    -- Of the last record that counts; 0 where none does.
    ADD COLUMN last_at_ms bigint NOT NULL DEFAULT 0;

UPDATE journal_tail SET
    names = (
        SELECT array_agg(coalesce(name_hash(name), 0) ORDER BY place) FROM unnest(aggregates) WITH ORDINALITY AS a (name, place)
    ),
    keys = array_fill(NULL::uuid, ARRAY[cardinality(offsets)]);

ALTER TABLE journal_tail ALTER COLUMN names SET NOT NULL, ALTER COLUMN keys SET NOT NULL;

-- The keys of a closed segment's records, one element an offset; null where it is not kept here. A segment without keys has
-- no row, and after the window it has none any more.
CREATE TABLE segment_keys (
    partition int NOT NULL,
    segment bigint NOT NULL,
    -- Of its last record that counts.
    last_at_ms bigint NOT NULL,
    first_key uuid NOT NULL,
    last_key uuid NOT NULL,
    keys uuid[] NOT NULL,
    PRIMARY KEY (partition, segment)
);

CREATE INDEX segment_keys_last_at ON segment_keys (partition, last_at_ms);

-- Hashes do not get smaller.
ALTER TABLE segment_keys ALTER COLUMN keys SET STORAGE EXTERNAL;

-- Segments close in their order: what lies in the tail before this offset is dead, if not gone.
CREATE FUNCTION tail_start(of_partition int) RETURNS bigint LANGUAGE sql STABLE
RETURN (SELECT coalesce(max(s.segment) + 1, 0) * 1024 FROM segments AS s WHERE s.partition = of_partition);

-- Where the commands under a key stand: as a rule one. `key_ms`: the time that the key tells, if it does. A command whose
-- key lies beside its record was decided within ten seconds of that.
CREATE FUNCTION offsets_of(of_key uuid, key_ms bigint, of_partition int) RETURNS SETOF bigint
LANGUAGE sql STABLE ROWS 1 AS $$
    SELECT r."offset" FROM repeats AS r WHERE r.key = of_key AND r.partition = of_partition
    UNION ALL
    SELECT s.segment * 1024 + place - 1
    FROM segment_keys AS s CROSS JOIN LATERAL unnest(array_positions(s.keys, of_key)) AS place
    WHERE s.partition = of_partition
      AND s.last_at_ms >= key_ms - 10000
      -- The times of a partition's commands only grow.
      AND s.last_at_ms <= coalesce((
          SELECT min(later.last_at_ms)
          FROM segment_keys AS later
          WHERE later.partition = of_partition AND later.last_at_ms > key_ms + 10000
      ), 9223372036854775807)
      AND of_key BETWEEN s.first_key AND s.last_key
    UNION ALL
    SELECT t.offsets[place]
    FROM journal_tail AS t CROSS JOIN LATERAL unnest(array_positions(t.keys, of_key)) AS place
    WHERE t.partition = of_partition AND t.first_offset >= tail_start(of_partition) AND t.last_at_ms >= key_ms - 10000
$$;

-- The commit at an offset, if it is one of the aggregate.
CREATE FUNCTION commit_at(of_aggregate text, of_partition int, at_offset bigint) RETURNS bytea
LANGUAGE sql STABLE AS $$
    SELECT run.records[run.place]
    FROM (
        SELECT b.aggregates, b.records, array_position(b.offsets, at_offset) AS place
        FROM segment_index AS i
        JOIN segment_blocks AS b
          ON b.partition = of_partition AND b.segment = i.segment AND b.block BETWEEN i.first_block AND i.last_block
        WHERE i.aggregate = of_aggregate AND i.segment = at_offset / 1024
        UNION ALL
        SELECT t.aggregates, t.records, array_position(t.offsets, at_offset)
        FROM journal_tail AS t
        WHERE t.partition = of_partition AND t.first_offset BETWEEN at_offset / 1024 * 1024 AND at_offset
    ) AS run
    WHERE run.place IS NOT NULL AND run.aggregates[run.place] = of_aggregate
$$;

-- As before, but that a run of the tail is found by the hash of the name.
CREATE OR REPLACE FUNCTION commits_of(of_aggregate text, of_partition int, after bigint, most bigint)
RETURNS TABLE (version bigint, events int, "offset" bigint, record bytea)
LANGUAGE plpgsql STABLE ROWS 10 AS $$
#variable_conflict use_column
DECLARE
    place record;
    given bigint;
    hash bigint := name_hash(of_aggregate);
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
    RETURN QUERY
        SELECT c.version, c.event_count, c."offset", c.record
        FROM journal_tail AS t
        CROSS JOIN LATERAL
            commits_in(t.offsets, t.aggregates, t.versions, t.events, t.records, of_aggregate, after) AS c
        WHERE t.partition = of_partition AND t.first_offset >= tail_start(of_partition) AND hash = ANY (t.names)
        ORDER BY c.version
        LIMIT most;
END
$$;
