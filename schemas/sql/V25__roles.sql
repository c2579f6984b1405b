-- Group roles with the least rights of each service. A deployment creates its logins and grants them one role each, such as
-- `CREATE ROLE shop_queries LOGIN PASSWORD '…' IN ROLE stampede_query_api`. The owner of the tables, who has all rights,
-- remains the account of `projector migrate` and `projector rebuild`.
DO $$
DECLARE
    needed text;
BEGIN
    FOREACH needed IN ARRAY ARRAY['stampede_command_api', 'stampede_query_api', 'stampede_projector'] LOOP
        CONTINUE WHEN EXISTS (SELECT FROM pg_roles WHERE rolname = needed);
        BEGIN
            EXECUTE format('CREATE ROLE %I NOLOGIN', needed);
        EXCEPTION
            -- All databases of a server share its roles, and the migration of another one may have been first.
            WHEN duplicate_object OR unique_violation THEN
                NULL;
            WHEN insufficient_privilege THEN
                RAISE EXCEPTION 'there is no role %, and % may not create it', needed, current_user USING
                    ERRCODE = 'insufficient_privilege',
                    HINT = format(
                        'As an administrator: CREATE ROLE stampede_command_api NOLOGIN; CREATE ROLE stampede_query_api '
                        'NOLOGIN; CREATE ROLE stampede_projector NOLOGIN; or ALTER ROLE %I CREATEROLE. Then migrate again.',
                        current_user
                    );
        END;
    END LOOP;
END
$$;

-- The write tier reads what the projector keeps for it.
GRANT SELECT ON
    checkpoints, log_partitions, settings, state_snapshots, repeats,
    journal_tail, segments, segment_blocks, segment_index, segment_keys
TO stampede_command_api;
-- The first service that is configured stores the settings on which all must agree. None may change them.
GRANT INSERT ON settings TO stampede_command_api;

-- The read tier reads the views, the tables through whose indexes it walks lists, and histories.
GRANT SELECT ON checkpoints, log_partitions, settings, journal_tail, segments, segment_blocks, segment_index
TO stampede_query_api;

-- Not the records: those of others may be among them.
GRANT SELECT (view, aggregate, partition, "offset") ON parked TO stampede_query_api;

-- The projector writes everything; it creates and drops nothing but partitions of `repeats`, by the functions below.
DO $$
DECLARE
    relation record;
BEGIN
    FOR relation IN
        SELECT oid::regclass AS name, relname ~ '^view_|_rows$|_parts$' AS is_read, relkind IN ('r', 'p') AS is_written
        FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
          AND pg_get_userbyid(relowner) = current_user
          -- Tables of a rebuild get the privileges of the live one at the switch.
          AND relname !~ '_(next|kept)$' AND relname <> 'refinery_schema_history'
    LOOP
        IF relation.is_read THEN
            EXECUTE format('GRANT SELECT ON %s TO stampede_query_api', relation.name);
        END IF;
        EXECUTE format('GRANT SELECT ON %s TO stampede_projector', relation.name);
        IF relation.is_written THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON %s TO stampede_projector', relation.name);
        END IF;
    END LOOP;
    EXECUTE format(
        'GRANT USAGE ON SCHEMA %I TO stampede_command_api, stampede_query_api, stampede_projector',
        current_schema()
    );
    -- Tables that a later migration creates. What other services read of them, it grants by name.
    EXECUTE format(
        'ALTER DEFAULT PRIVILEGES IN SCHEMA %I GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO stampede_projector',
        current_schema()
    );
    -- `pg_temp` last: a caller's temporary tables must not pass for ours.
    EXECUTE format(
        $function$
        -- Creates a partition of `repeats` for five minutes. Unlike CREATE TABLE … PARTITION OF, ATTACH does not wait for
        -- readers.
        CREATE FUNCTION attach_repeats(slot bigint) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = %1$I, pg_temp AS $body$
        BEGIN
            EXECUTE format('CREATE TABLE repeats_%%s (LIKE repeats INCLUDING ALL)', slot);
            EXECUTE format(
                'ALTER TABLE repeats ATTACH PARTITION repeats_%%s FOR VALUES FROM (%%L) TO (%%L)',
                slot, to_timestamp(slot * 300), to_timestamp((slot + 1) * 300)
            );
        END
        $body$;

        CREATE FUNCTION drop_repeats(slot bigint) RETURNS void
        LANGUAGE plpgsql SECURITY DEFINER SET search_path = %1$I, pg_temp AS $body$
        BEGIN
            EXECUTE format('DROP TABLE IF EXISTS repeats_%%s', slot);
        END
        $body$;
        $function$,
        current_schema()
    );
END
$$;

REVOKE EXECUTE ON FUNCTION attach_repeats(bigint), drop_repeats(bigint) FROM PUBLIC;

GRANT EXECUTE ON FUNCTION attach_repeats(bigint), drop_repeats(bigint) TO stampede_projector;
