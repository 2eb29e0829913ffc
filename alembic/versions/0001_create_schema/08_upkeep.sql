-- Keep the partitions of history: one per outcome and UTC day up to `ahead` days from now; drop those older than
-- their outcome's retention, and past days with nothing in them. Rows that fell into a default partition (its day was missing)
-- are moved to their day's new partition, or deleted when too old. Safe to call at any time, from any number of
-- workers: the second one returns at once. Answers what it did.
CREATE FUNCTION pgqueue.prune(ahead integer DEFAULT 3) RETURNS SETOF text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET lock_timeout = '100ms' AS $$
DECLARE
    kept record;
    part record;
    day date;
    name text;
    parent text;
    holds_rows boolean;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('pgqueue.prune', 0)) THEN
        RETURN;
    END IF;
    FOR kept IN SELECT r.state, r.keep FROM pgqueue.retention r ORDER BY r.state LOOP
        parent := 'history_' || kept.state;
        FOR day IN SELECT current_date + n FROM generate_series(0, ahead) n LOOP
            name := parent || to_char(day, '_YYYYMMDD');
            CONTINUE WHEN to_regclass(format('pgqueue.%I', name)) IS NOT NULL;
            EXECUTE format('CREATE TABLE pgqueue.%I (LIKE pgqueue.%I INCLUDING ALL)', name, parent);
            EXECUTE format('WITH moved AS (DELETE FROM pgqueue.%I WHERE finished_at >= %L AND finished_at < %L RETURNING *)
                            INSERT INTO pgqueue.%I SELECT * FROM moved', parent || '_default', day, day + 1, name);
            EXECUTE format('ALTER TABLE pgqueue.%I ATTACH PARTITION pgqueue.%I FOR VALUES FROM (%L) TO (%L)',
                           parent, name, day, day + 1);
            -- Who may read history may also see what the planner's statistics say of each day (pg_stats asks for this).
            EXECUTE format('GRANT SELECT ON pgqueue.%I TO pgqueue_reader, pgqueue_worker, pgqueue_admin', name);
            RETURN NEXT 'created ' || name;
        END LOOP;
        EXECUTE format('DELETE FROM pgqueue.%I WHERE finished_at < now() - %L::interval', parent || '_default', kept.keep);
    END LOOP;
    -- Drops come last, each by itself: somebody who still reads an old day keeps that day, and nothing else.
    FOR kept IN SELECT r.state, r.keep FROM pgqueue.retention r ORDER BY r.state LOOP
        parent := 'history_' || kept.state;
        FOR part IN
            SELECT c.relname, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = to_regclass('pgqueue.' || parent) AND c.relname ~ '_[0-9]{8}$'
            ORDER BY c.relname
        LOOP
            CONTINUE WHEN part.day >= current_date;
            BEGIN
                EXECUTE format('SELECT EXISTS (SELECT FROM pgqueue.%I)', part.relname) INTO holds_rows;
                CONTINUE WHEN holds_rows AND part.day + 1 + kept.keep > now();
                EXECUTE format('DROP TABLE pgqueue.%I', part.relname);
                RETURN NEXT 'dropped ' || part.relname;
            EXCEPTION WHEN lock_not_available THEN
                RETURN NEXT 'in use: ' || part.relname;
            END;
        END LOOP;
    END LOOP;
    RETURN;
END $$;

-- Forget what has run out: throttles, full token buckets, batches older than any history, tokens of the API 30 days after they were revoked
-- or have expired; and settle edges to jobs that were pruned or deleted by hand. From any number of workers: the second one returns
-- at once.
CREATE FUNCTION pgqueue.tidy() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF pg_try_advisory_xact_lock(hashtextextended('pgqueue.tidy', 0)) THEN
        PERFORM pgqueue.resolve(ARRAY(
            SELECT DISTINCT d.upstream_id FROM pgqueue.dependencies d
            WHERE NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = d.upstream_id)));
        DELETE FROM pgqueue.batches b
        WHERE coalesce(b.finished_at, CASE WHEN b.total = 0 THEN b.created_at END) < now() - (SELECT max(r.keep) + interval '1 day' FROM pgqueue.retention r);
        DELETE FROM pgqueue.tokens t
        WHERE least(t.revoked_at, t.expires_at) < now() - interval '30 days'
          AND t.id < (SELECT max(x.id) FROM pgqueue.tokens x);  -- one stays: that there was a token is why the API asks for one
        DELETE FROM pgqueue.throttles t WHERE t.until < now();
        DELETE FROM pgqueue.buckets b USING pgqueue.queues q
        WHERE b.group_key <> '' AND q.name = b.queue AND b.filled_at < now() - interval '1 hour'
          AND (q.key_rate IS NULL OR pgqueue.tokens_now(b.tokens, b.filled_at, q.key_rate, coalesce(q.key_burst, 1)) >= coalesce(q.key_burst, 1));
    END IF;
END $$;
