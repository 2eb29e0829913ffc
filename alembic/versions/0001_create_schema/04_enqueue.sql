-- Is this at most a mebibyte of compact JSON? A value of up to 4096 bytes can't be more even when it is compressed
-- (pglz: 91 to 1 at best), so small payloads are not turned into text to be counted.
CREATE FUNCTION pgqueue.fits(payload jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN pg_column_size(payload) <= 4096 THEN true
                WHEN octet_length(payload::text) <= 1048576 THEN true
                ELSE octet_length(replace(replace(payload::text, ', ', ','), ': ', ':')) <= 1048576 END
$$;

-- May this job be stored? One expression, inlined by the planner, the same for every way in.
CREATE FUNCTION pgqueue.acceptable(
    task text, payload jsonb, queue text, priority integer, due timestamptz,
    max_attempts integer, timeout interval, unique_key text, meta jsonb
) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT char_length(task) BETWEEN 1 AND 128
       AND char_length(queue) BETWEEN 1 AND 128
       AND CASE WHEN pg_column_size(payload) <= 4096 THEN true ELSE pgqueue.fits(payload) END
       AND priority BETWEEN 0 AND 9
       AND max_attempts BETWEEN 1 AND 32767
       AND due BETWEEN '1970-01-01Z' AND '9999-01-01Z'
       AND (timeout IS NULL OR timeout BETWEEN interval '1 microsecond' AND interval '36500 days')
       AND (unique_key IS NULL OR char_length(unique_key) BETWEEN 1 AND 512)
       AND (meta IS NULL OR (jsonb_typeof(meta) = 'object' AND pg_column_size(meta) <= 65536))
$$;

-- When a job is due; NULL when delay and run_at contradict each other or delay is negative.
CREATE FUNCTION pgqueue.due(delay interval, run_at timestamptz) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN delay IS NULL THEN coalesce(run_at, now())
                WHEN run_at IS NULL AND delay >= interval '0' THEN now() + delay END
$$;

-- Say why a job was refused. Called only when the test has failed, so the good path pays nothing. It never returns; its type lets it
-- stand where a time is expected.
CREATE FUNCTION pgqueue.reject(
    task text, payload jsonb, queue text, priority integer, delay interval, run_at timestamptz,
    max_attempts integer, timeout interval, unique_key text, meta jsonb, place text DEFAULT ''
) RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT pgqueue.fits(payload) THEN
        RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded',
            MESSAGE = format('%spayload of %s bytes is over the limit of 1048576', place, octet_length(payload::text)),
            HINT = 'Store the data in a table of your own and enqueue its key.';
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = place || CASE
        WHEN task IS NULL OR char_length(task) NOT BETWEEN 1 AND 128 THEN 'task must have 1 to 128 characters'
        WHEN queue IS NULL OR char_length(queue) NOT BETWEEN 1 AND 128 THEN 'queue must have 1 to 128 characters'
        WHEN payload IS NULL THEN 'payload must not be NULL; say ''{}'' or ''null''::jsonb'
        WHEN priority IS NULL OR priority NOT BETWEEN 0 AND 9 THEN 'priority must be 0 (first) to 9 (last)'
        WHEN max_attempts IS NULL OR max_attempts NOT BETWEEN 1 AND 32767 THEN 'max_attempts must be 1 to 32767'
        WHEN delay IS NOT NULL AND run_at IS NOT NULL THEN 'say delay or run_at, not both'
        WHEN delay < interval '0' THEN 'delay must not be negative'
        WHEN timeout NOT BETWEEN interval '1 microsecond' AND interval '36500 days' THEN 'timeout must be positive, and at most 36500 days'
        WHEN char_length(unique_key) NOT BETWEEN 1 AND 512 THEN 'unique_key must have 1 to 512 characters'
        WHEN jsonb_typeof(meta) <> 'object' THEN 'meta must be a JSON object'
        WHEN pg_column_size(meta) > 65536 THEN 'meta must be at most 65536 bytes'
        ELSE 'run_at must be finite, from 1970 to 9998' END;
END $$;

-- Refuse what pgqueue.enqueue_together does not know; as reject.
CREATE FUNCTION pgqueue.refuse_options(extra jsonb) RETURNS timestamptz
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
        MESSAGE = 'these are for pgqueue.submit_many: ' || (SELECT string_agg(key, ', ') FROM jsonb_object_keys(extra) AS key);
END $$;

-- Say why an option of pgqueue.submit was refused.
CREATE FUNCTION pgqueue.check_options(
    unique_key text, unique_for interval, on_conflict text, group_key text, depends_on bigint[], on_dead text
) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong text := CASE
        WHEN char_length(group_key) NOT BETWEEN 1 AND 512 THEN 'group_key must have 1 to 512 characters'
        WHEN unique_for IS NOT NULL AND unique_key IS NULL THEN 'unique_for needs a unique_key'
        WHEN unique_for NOT BETWEEN interval '1 microsecond' AND interval '36500 days' THEN 'unique_for must be positive, and at most 36500 days'
        WHEN on_conflict IS NULL OR on_conflict NOT IN ('skip', 'replace', 'raise') THEN 'on_conflict must be skip, replace or raise'
        WHEN on_dead IS NULL OR on_dead NOT IN ('cancel', 'continue', 'hold') THEN 'on_dead must be cancel, continue or hold'
        WHEN cardinality(depends_on) > 10000 THEN 'depends_on must name at most 10000 jobs; let a batch stand for more'
        WHEN array_position(depends_on, NULL) IS NOT NULL THEN 'depends_on must not hold NULL' END;
BEGIN
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = wrong;
    END IF;
END $$;

-- Insert one job with every option, and say which job the caller has now: the new one, or (created = false) the one that
-- holds its unique_key.
--   on_conflict: skip: leave that job as it is. replace: while it waits, it becomes what is said here, in its place (its
--     attempts and dependencies stay); once it runs, its key passes to a new job, so that nothing is forgotten. raise:
--     refuse (unique_violation).
--   unique_for: the key is held for that long from now, even when the job ends before; what replaces it then runs when
--     the period is over.
--   depends_on: jobs or batches that have to end first; on_dead says what it means that one of them dies or is cancelled:
--     cancel this job, too; continue as if it had completed; hold until it has been retried and has completed.
--   batch_id: an unfinished batch, in which it is counted.
CREATE FUNCTION pgqueue.submit(
    task text,
    payload jsonb DEFAULT '{}',
    queue text DEFAULT 'default',
    priority integer DEFAULT 5,
    delay interval DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    max_attempts integer DEFAULT 10,
    timeout interval DEFAULT NULL,
    unique_key text DEFAULT NULL,
    meta jsonb DEFAULT NULL,
    group_key text DEFAULT NULL,
    unique_for interval DEFAULT NULL,
    on_conflict text DEFAULT 'skip',
    depends_on bigint[] DEFAULT NULL,
    on_dead text DEFAULT 'cancel',
    batch_id bigint DEFAULT NULL,
    OUT id bigint,
    OUT created boolean
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
BEGIN
    SELECT s.id, s.created INTO id, created FROM pgqueue.submit_one(task, payload, queue, priority, delay, run_at, max_attempts, timeout,
        unique_key, meta, group_key, unique_for, on_conflict, depends_on, on_dead, batch_id) s;
END $$;

-- The same, for who holds our rights. many, siblings: for submit_each: its batch has counted it, and others may follow it; it also
-- depends on these, which the same call has made, and which are live.
CREATE FUNCTION pgqueue.submit_one(
    task text,
    payload jsonb DEFAULT '{}',
    queue text DEFAULT 'default',
    priority integer DEFAULT 5,
    delay interval DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    max_attempts integer DEFAULT 10,
    timeout interval DEFAULT NULL,
    unique_key text DEFAULT NULL,
    meta jsonb DEFAULT NULL,
    group_key text DEFAULT NULL,
    unique_for interval DEFAULT NULL,
    on_conflict text DEFAULT 'skip',
    depends_on bigint[] DEFAULT NULL,
    on_dead text DEFAULT 'cancel',
    batch_id bigint DEFAULT NULL,
    many boolean DEFAULT false,
    siblings bigint[] DEFAULT NULL,
    OUT id bigint,
    OUT created boolean
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    due timestamptz := pgqueue.due(delay, run_at);
    unmet bigint[];
    failed bigint[];
    holder record;
BEGIN
    IF pgqueue.acceptable(task, payload, queue, priority, due, max_attempts, timeout, unique_key, meta) IS NOT TRUE THEN
        PERFORM pgqueue.reject(task, payload, queue, priority, delay, run_at, max_attempts, timeout, unique_key, meta);
    END IF;
    PERFORM pgqueue.check_options(unique_key, unique_for, on_conflict, group_key, depends_on, on_dead);
    IF cardinality(depends_on) > 0 THEN
        SELECT u.waiting || u.failed, u.failed INTO unmet, failed FROM pgqueue.unmet(depends_on, on_dead, strict => true) u;
    END IF;
    IF batch_id IS NOT NULL THEN
        IF NOT many THEN
            PERFORM pgqueue.grow_batch(batch_id, 1);
        END IF;
        IF unmet <> '{}' THEN
            PERFORM pgqueue.refuse_cycle(batch_id, unmet);
        END IF;
    END IF;
    IF siblings <> '{}' THEN
        IF cardinality(siblings) + coalesce(cardinality(depends_on), 0) > 100 THEN
            PERFORM pgqueue.check_options(NULL, NULL, 'skip', NULL, coalesce(depends_on, '{}') || siblings, 'cancel');
        END IF;
        unmet := coalesce(unmet, '{}') || siblings;
        depends_on := coalesce(depends_on, '{}') || siblings;
    END IF;
    created := true;
    LOOP
        INSERT INTO pgqueue.jobs AS j (task, payload, queue, priority, run_at, due_at, state, pending, max_attempts, timeout, meta,
            unique_key, group_key, batch_id, depends_on, has_followers)
        VALUES (task, payload, queue, priority,
            CASE WHEN unmet <> '{}' THEN 'infinity' ELSE due END, CASE WHEN unmet <> '{}' THEN due END,
            CASE WHEN unmet <> '{}' THEN 'blocked' ELSE 'available' END::pgqueue.job_state, nullif(cardinality(unmet), 0),
            max_attempts, timeout, meta, unique_key, group_key, batch_id, nullif(depends_on, '{}'), many)
        ON CONFLICT DO NOTHING
        RETURNING j.id INTO id;
        IF id IS NOT NULL AND unique_for IS NOT NULL THEN
            INSERT INTO pgqueue.throttles AS t VALUES (unique_key, id, '-infinity', clock_timestamp() + unique_for)
            ON CONFLICT ON CONSTRAINT throttles_pkey DO UPDATE SET job_id = excluded.job_id, since = excluded.since, until = excluded.until
            WHERE t.until <= clock_timestamp();
            IF NOT FOUND THEN  -- an earlier job of this period has ended, and the key is still held
                SELECT t.job_id, t.until INTO holder FROM pgqueue.throttles t WHERE t.unique_key = submit_one.unique_key;
                IF on_conflict = 'replace' THEN
                    UPDATE pgqueue.jobs j SET run_at = greatest(j.run_at, holder.until), due_at = greatest(j.due_at, holder.until)
                    WHERE j.id = submit_one.id;
                    due := greatest(due, holder.until);
                    UPDATE pgqueue.throttles t SET job_id = submit_one.id, since = holder.until, until = holder.until + unique_for
                    WHERE t.unique_key = submit_one.unique_key;
                ELSE
                    DELETE FROM pgqueue.jobs j WHERE j.id = submit_one.id;
                    id := holder.job_id;
                    created := false;
                END IF;
            END IF;
        END IF;
        EXIT WHEN id IS NOT NULL;
        IF on_conflict = 'replace' THEN
            SELECT greatest(due, t.since) AS due, t.job_id INTO holder FROM pgqueue.throttles t WHERE t.unique_key = submit_one.unique_key;
            UPDATE pgqueue.jobs j SET task = submit_one.task, payload = submit_one.payload, queue = submit_one.queue, priority = submit_one.priority,
                max_attempts = greatest(submit_one.max_attempts, j.attempt + 1), timeout = submit_one.timeout, meta = submit_one.meta,
                group_key = submit_one.group_key, place = CASE WHEN j.group_key = submit_one.group_key THEN j.place END,
                run_at = CASE WHEN j.state = 'blocked' THEN j.run_at WHEN j.id = holder.job_id THEN holder.due ELSE due END,
                due_at = CASE WHEN j.state <> 'blocked' THEN NULL WHEN j.id = holder.job_id THEN holder.due ELSE due END
            WHERE j.unique_key = submit_one.unique_key AND j.state <> 'running'
            RETURNING j.id INTO id;
            IF id IS NULL THEN
                UPDATE pgqueue.jobs j SET unique_key = NULL WHERE j.unique_key = submit_one.unique_key AND j.state = 'running';
            END IF;
        ELSE
            SELECT j.id INTO id FROM pgqueue.jobs j WHERE j.unique_key = submit_one.unique_key;
        END IF;
        created := id IS NULL;  -- NULL: the holder ended, or has just given up its key: try again
        EXIT WHEN id IS NOT NULL;
    END LOOP;
    IF NOT created THEN
        IF batch_id IS NOT NULL AND NOT many THEN  -- a job that was there before belongs to no new batch
            PERFORM pgqueue.grow_batch(batch_id, -1);
        END IF;
        IF on_conflict = 'raise' THEN
            RAISE EXCEPTION USING ERRCODE = 'unique_violation', DETAIL = id::text,
                MESSAGE = format('job %s holds the unique_key %L', id, unique_key);
        ELSIF on_conflict = 'skip' THEN
            RETURN;
        END IF;
    ELSIF unmet <> '{}' THEN
        INSERT INTO pgqueue.dependencies SELECT u, id, on_dead FROM unnest(unmet) u;
        IF failed <> '{}' AND on_dead = 'cancel' THEN  -- one that is dead already decides at once
            PERFORM pgqueue.resolve(failed);
        END IF;
    END IF;
    IF due <= now() + interval '1 minute' AND coalesce(unmet, '{}') = '{}' THEN
        PERFORM pgqueue.ring(queue);
    END IF;
END $$;

-- The public contract: a job exists exactly when the caller's transaction commits. Answers its id; with a unique_key that
-- is held, the id of the job that holds it. The options are those of pgqueue.submit.
CREATE FUNCTION pgqueue.enqueue(
    task text,
    payload jsonb DEFAULT '{}',
    queue text DEFAULT 'default',
    priority integer DEFAULT 5,
    delay interval DEFAULT NULL,
    run_at timestamptz DEFAULT NULL,
    max_attempts integer DEFAULT 10,
    timeout interval DEFAULT NULL,
    unique_key text DEFAULT NULL,
    meta jsonb DEFAULT NULL,
    group_key text DEFAULT NULL,
    unique_for interval DEFAULT NULL,
    on_conflict text DEFAULT 'skip',
    depends_on bigint[] DEFAULT NULL,
    on_dead text DEFAULT 'cancel'
) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_variable
DECLARE
    due timestamptz;
    new_id bigint;
BEGIN
    IF unique_key IS NOT NULL OR group_key IS NOT NULL OR depends_on IS NOT NULL OR unique_for IS NOT NULL
       OR on_conflict IS DISTINCT FROM 'skip' OR on_dead IS DISTINCT FROM 'cancel' THEN
        SELECT s.id INTO new_id FROM pgqueue.submit_one(task, payload, queue, priority, delay, run_at, max_attempts, timeout, unique_key,
            meta, group_key, unique_for, on_conflict, depends_on, on_dead) s;
        RETURN new_id;
    END IF;
    due := pgqueue.due(delay, run_at);
    IF pgqueue.acceptable(task, payload, queue, priority, due, max_attempts, timeout, NULL, meta) IS NOT TRUE THEN
        PERFORM pgqueue.reject(task, payload, queue, priority, delay, run_at, max_attempts, timeout, NULL, meta);
    END IF;
    INSERT INTO pgqueue.jobs AS j (task, payload, queue, priority, run_at, max_attempts, timeout, meta)
    VALUES (task, payload, queue, priority, due, max_attempts, timeout, meta)
    RETURNING j.id INTO new_id;
    -- The body of pgqueue.ring, without the price of another call. A worker asleep looks ahead, so a job that is
    -- due later than its longest sleep (a minute) needs no bell.
    IF due <= now() + interval '1 minute' THEN
        IF pg_try_advisory_lock(hashtextextended('pgqueue.bell ' || queue, 0)) THEN
            PERFORM pg_advisory_unlock(hashtextextended('pgqueue.bell ' || queue, 0));
        ELSIF pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify('pgqueue.wake', queue);
        END IF;
    END IF;
    RETURN new_id;
END $$;

-- Plain jobs of several callers in one statement, all or none: a JSON array of objects whose keys are arguments of enqueue, but no keys
-- of uniqueness or order and no dependencies. Answers the ids, in the order given. One INSERT for all, and no word about which of
-- them is at fault: submit_many costs up to four times as much, most of it for that and for the options that are not here.
CREATE FUNCTION pgqueue.enqueue_together(jobs jsonb) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids bigint[];
    queues text[];
BEGIN
    WITH landed AS (
        INSERT INTO pgqueue.jobs AS j (task, payload, queue, priority, run_at, max_attempts, timeout, meta)
        SELECT r.task, given.payload, given.queue, given.priority,
            CASE WHEN given.extra <> '{}' THEN pgqueue.refuse_options(given.extra)
                 WHEN pgqueue.acceptable(r.task, given.payload, given.queue, given.priority, pgqueue.due(r.delay, r.run_at),
                     given.max_attempts, r.timeout, NULL, r.meta) THEN pgqueue.due(r.delay, r.run_at)
                 ELSE pgqueue.reject(r.task, given.payload, given.queue, given.priority, r.delay, r.run_at, given.max_attempts, r.timeout,
                     NULL, r.meta) END,
            given.max_attempts, r.timeout, r.meta
        FROM jsonb_array_elements(jobs) WITH ORDINALITY AS e(item, nth)
        CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority integer, delay interval, run_at timestamptz,
            max_attempts integer, timeout interval, meta jsonb)
        CROSS JOIN LATERAL (SELECT coalesce(e.item -> 'payload', '{}') AS payload, coalesce(r.queue, 'default') AS queue,
            coalesce(r.priority, 5) AS priority, coalesce(r.max_attempts, 10) AS max_attempts,
            e.item - '{task,payload,queue,priority,delay,run_at,max_attempts,timeout,meta}'::text[] AS extra) AS given
        ORDER BY e.nth
        RETURNING j.id, j.queue, j.run_at
    )
    SELECT array_agg(l.id ORDER BY l.id), array_agg(DISTINCT l.queue) FILTER (WHERE l.run_at <= now() + interval '1 minute')
    INTO ids, queues
    FROM landed l;
    PERFORM pgqueue.ring(q) FROM unnest(queues) q;
    RETURN QUERY SELECT unnest(ids);
END $$;

-- Many at once: a JSON array of objects whose keys are the arguments of submit, and `after`: the indexes (from 0) of
-- earlier elements that this one depends on. All or none: one bad element refuses the whole call and is named by its
-- index. Answers, in the order given, the ids and whether each was created.
CREATE FUNCTION pgqueue.submit_many(jobs jsonb, batch_id bigint DEFAULT NULL) RETURNS TABLE (id bigint, created boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    given pgqueue.jobs[];
    bad record;
    missing integer;
    ids bigint[];
    item jsonb;
    fresh bigint[];
    index integer := 0;
BEGIN
    IF jsonb_typeof(submit_many.jobs) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'jobs must be a JSON array of objects';
    END IF;
    SELECT e.nth, jsonb_typeof(e.item) AS kind, k.key INTO bad
    FROM jsonb_array_elements(submit_many.jobs) WITH ORDINALITY e(item, nth)
    LEFT JOIN LATERAL (
        SELECT key FROM jsonb_object_keys(CASE WHEN jsonb_typeof(e.item) = 'object' THEN e.item ELSE '{}' END) AS key
        WHERE key NOT IN ('task', 'payload', 'queue', 'priority', 'delay', 'run_at', 'max_attempts', 'timeout', 'unique_key', 'meta',
                          'group_key', 'unique_for', 'on_conflict', 'depends_on', 'on_dead', 'after')
        LIMIT 1) k ON true
    WHERE jsonb_typeof(e.item) <> 'object' OR k.key IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('job %s: ', bad.nth - 1)
            || CASE WHEN bad.kind <> 'object' THEN 'must be an object, not ' || bad.kind ELSE format('%L is not an option', bad.key) END;
    END IF;

    IF submit_many.batch_id IS NOT NULL THEN
        PERFORM pgqueue.lock_upstream(submit_many.jobs);
        PERFORM pgqueue.grow_batch(submit_many.batch_id, jsonb_array_length(submit_many.jobs));
    END IF;
    IF jsonb_path_exists(submit_many.jobs, '$[*] ? (exists(@.unique_for) || exists(@.on_conflict) || exists(@.depends_on) || exists(@.after)
        || exists(@.on_dead) || (exists(@.unique_key) && $batch == true))', jsonb_build_object('batch', submit_many.batch_id IS NOT NULL)) THEN
        RETURN QUERY SELECT s.id, s.created FROM pgqueue.submit_each(submit_many.jobs, submit_many.batch_id) s;
        RETURN;
    END IF;

    BEGIN
    SELECT array_agg(ROW(
        nextval('pgqueue.jobs_id_seq'), pgqueue.due(r.delay, r.run_at), now(), NULL, NULL, NULL,
        'available', CASE WHEN r.priority BETWEEN 0 AND 9 THEN r.priority WHEN r.priority IS NULL THEN 5 END,  -- NULL is refused below
        0, CASE WHEN r.max_attempts >= 1 THEN r.max_attempts WHEN r.max_attempts IS NULL THEN 10 END, false, false, NULL, coalesce(r.queue, 'default'), r.task,
        coalesce(e.item -> 'payload', '{}'), r.timeout, r.unique_key, NULL, NULL, NULL, r.meta,
        r.group_key, NULL, NULL, submit_many.batch_id, NULL, NULL)::pgqueue.jobs ORDER BY e.nth)
    INTO given
    FROM jsonb_array_elements(submit_many.jobs) WITH ORDINALITY e(item, nth)
    CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority smallint, delay interval,
        run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb, group_key text);
    EXCEPTION WHEN data_exception THEN  -- a value is of the wrong kind: find its element
        FOR item IN SELECT e FROM jsonb_array_elements(submit_many.jobs) e LOOP
            BEGIN
                PERFORM FROM jsonb_to_record(item) AS r(task text, queue text, priority smallint, delay interval,
                    run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb, group_key text);
            EXCEPTION WHEN data_exception THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('job %s: %s', index, SQLERRM);
            END;
            index := index + 1;
        END LOOP;
        RAISE;
    END;

    SELECT e.nth, r.*, e.item -> 'payload' AS payload INTO bad
    FROM unnest(given) WITH ORDINALITY AS g(id, run_at, created_at, started_at, lease_until, lease_token, state, priority,
        attempt, max_attempts, cancel_requested, has_followers, pending, queue, task, payload, timeout, unique_key, worker, progress,
        errors, meta, group_key, place, due_at, batch_id, depends_on, last_token, nth)
    CROSS JOIN LATERAL (SELECT submit_many.jobs -> (g.nth - 1)::integer AS item, g.nth) e
    CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority smallint, delay interval,
        run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb, group_key text)
    WHERE pgqueue.acceptable(g.task, g.payload, g.queue, g.priority::integer, g.run_at, g.max_attempts::integer, g.timeout,
                             g.unique_key, g.meta) IS NOT TRUE
       OR char_length(g.group_key) NOT BETWEEN 1 AND 512
    LIMIT 1;
    IF FOUND THEN
        IF char_length(bad.group_key) NOT BETWEEN 1 AND 512 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('job %s: group_key must have 1 to 512 characters', bad.nth - 1);
        END IF;
        PERFORM pgqueue.reject(bad.task, coalesce(bad.payload, '{}'), coalesce(bad.queue, 'default'), coalesce(bad.priority, 5::smallint)::integer,
            bad.delay, bad.run_at, coalesce(bad.max_attempts, 10::smallint)::integer, bad.timeout, bad.unique_key, bad.meta,
            format('job %s: ', bad.nth - 1));
    END IF;

    INSERT INTO pgqueue.jobs SELECT g.* FROM unnest(given) g WHERE g.unique_key IS NULL;
    LOOP
        INSERT INTO pgqueue.jobs SELECT g.* FROM unnest(given) g WHERE g.unique_key IS NOT NULL
        ORDER BY g.unique_key COLLATE "C", g.id  -- one order for everybody: two batches of the same keys wait, not deadlock
        ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL DO NOTHING;
        SELECT array_agg(coalesce(held.id, CASE WHEN g.unique_key IS NULL THEN g.id END) ORDER BY g.nth),
               count(*) FILTER (WHERE g.unique_key IS NOT NULL AND held.id IS NULL)
        INTO ids, missing
        FROM (SELECT x.id, x.unique_key, x.nth FROM unnest(given) WITH ORDINALITY AS x(id, run_at, created_at, started_at,
            lease_until, lease_token, state, priority, attempt, max_attempts, cancel_requested, has_followers, pending, queue, task,
            payload, timeout, unique_key, worker, progress, errors, meta, group_key, place, due_at, batch_id, depends_on, last_token, nth)) g
        LEFT JOIN LATERAL (  -- one probe each, whatever the table was like when this was planned: a join would walk it
            SELECT j.id FROM pgqueue.jobs j WHERE j.unique_key = g.unique_key LIMIT 1
        ) held ON true;
        EXIT WHEN missing = 0;  -- else a holder finished between the two statements: its key is free, try again
    END LOOP;
    PERFORM pgqueue.ring(q.queue)
    FROM (SELECT DISTINCT g.queue FROM unnest(given) g WHERE g.run_at <= now() + interval '1 minute') q;
    fresh := ARRAY(SELECT g.id FROM unnest(given) g);
    RETURN QUERY SELECT i.id, i.id = i.own FROM unnest(ids, fresh) WITH ORDINALITY AS i(id, own, nth) ORDER BY i.nth;
END $$;

-- The same, one after the other, for batches in which an element's options need more than an INSERT.
CREATE FUNCTION pgqueue.submit_each(jobs jsonb, batch_id bigint) RETURNS TABLE (id bigint, created boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    item jsonb;
    index integer := 0;
    ids bigint[] := '{}';
    is_live boolean[] := '{}';  -- made here, and depending on nothing that may be dead: it is live
    upstream bigint[];
    siblings bigint[];
    many boolean := submit_each.batch_id IS NOT NULL OR jsonb_path_exists(submit_each.jobs, '$[*].after');
    duplicates integer := 0;
    more text;
BEGIN
    IF submit_each.batch_id IS NULL THEN
        PERFORM pgqueue.lock_upstream(submit_each.jobs);
    END IF;
    BEGIN
        FOR item IN SELECT e FROM jsonb_array_elements(submit_each.jobs) e LOOP
            IF EXISTS (SELECT FROM jsonb_array_elements(item -> 'after') a WHERE jsonb_typeof(a) <> 'number' OR a::numeric NOT BETWEEN 0 AND index - 1) THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'after must name earlier elements, by their index';
            END IF;
            upstream := ARRAY(SELECT d::bigint FROM jsonb_array_elements_text(nullif(item -> 'depends_on', 'null')) d);
            siblings := NULL;
            IF item ? 'after' THEN
                SELECT upstream || coalesce(array_agg(a.id ORDER BY a.id) FILTER (WHERE NOT a.is_live), '{}'),
                    array_agg(a.id ORDER BY a.id) FILTER (WHERE a.is_live)
                INTO upstream, siblings
                FROM (SELECT DISTINCT ids[e::integer + 1] AS id, is_live[e::integer + 1] AS is_live
                      FROM jsonb_array_elements_text(item -> 'after') e) a;
            END IF;
            SELECT s.id, s.created INTO id, created
            FROM jsonb_to_record(item) AS r(task text, queue text, priority integer, delay interval, run_at timestamptz,
                max_attempts integer, timeout interval, unique_key text, meta jsonb, group_key text, unique_for interval, on_conflict text,
                on_dead text)
            CROSS JOIN LATERAL pgqueue.submit_one(r.task, coalesce(item -> 'payload', '{}'), coalesce(r.queue, 'default'), coalesce(r.priority, 5),
                r.delay, r.run_at, coalesce(r.max_attempts, 10), r.timeout, r.unique_key, r.meta, r.group_key, r.unique_for,
                coalesce(r.on_conflict, 'skip'),
                nullif(upstream, '{}'), coalesce(r.on_dead, 'cancel'), submit_each.batch_id, many, siblings) s;
            ids := ids || id;
            is_live := is_live || (created AND upstream = '{}');
            index := index + 1;
            duplicates := duplicates + (NOT created)::integer;
            RETURN NEXT;
        END LOOP;
    EXCEPTION
        WHEN data_exception THEN
            RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = format('job %s: %s', index, SQLERRM);
        WHEN program_limit_exceeded THEN
            GET STACKED DIAGNOSTICS more = PG_EXCEPTION_HINT;
            RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = format('job %s: %s', index, SQLERRM), HINT = more;
        WHEN unique_violation THEN  -- its detail is the id of the job that holds the key
            GET STACKED DIAGNOSTICS more = PG_EXCEPTION_DETAIL;
            RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = format('job %s: %s', index, SQLERRM), DETAIL = more;
    END;
    IF duplicates > 0 AND submit_each.batch_id IS NOT NULL THEN  -- a job that was there before belongs to no new batch
        PERFORM pgqueue.grow_batch(submit_each.batch_id, -duplicates);
    END IF;
END $$;

-- Lock what these elements depend on, all of it in one order, before anything else: so that two such calls, and who ends those
-- jobs meanwhile, wait for each other and do not deadlock. What is no id is refused later, with its element's index.
CREATE FUNCTION pgqueue.lock_upstream(jobs jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF jsonb_path_exists(lock_upstream.jobs, '$[*].depends_on') THEN
        PERFORM pgqueue.unmet(ARRAY(
            SELECT CASE WHEN d::text ~ '^[0-9]{1,18}$' THEN d::text::bigint END
            FROM jsonb_path_query(lock_upstream.jobs, 'lax $[*].depends_on[*]') d), 'continue', strict => false);
    END IF;
END $$;

-- So many more jobs, or fewer, belong to this batch. The transaction that has made it may go on to fill it when all that is in
-- it so far has ended at once (a dead upstream); and when what is taken back was all that it still waited for, it is finished.
CREATE FUNCTION pgqueue.grow_batch(batch_id bigint, by integer) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE pgqueue.batches b SET total = b.total + grow_batch.by,
        finished_at = CASE WHEN b.total + grow_batch.by BETWEEN 1 AND b.completed + b.dead + b.cancelled THEN now() END
    WHERE b.id = grow_batch.batch_id AND (b.finished_at IS NULL OR b.created_at = now());
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('there is no unfinished batch %s', grow_batch.batch_id);
    END IF;
END $$;

-- Many at once, for who needs no more than the ids.
CREATE FUNCTION pgqueue.enqueue_many(jobs jsonb) RETURNS SETOF bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT s.id FROM pgqueue.submit_many(jobs) s
$$;

-- A new batch: jobs counted together, to be filled by pgqueue.submit_many in the same transaction.
CREATE FUNCTION pgqueue.create_batch(name text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    new_id bigint := nextval('pgqueue.jobs_id_seq');
BEGIN
    IF char_length(name) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'the name of a batch must have 1 to 128 characters';
    END IF;
    INSERT INTO pgqueue.batches (id, name) VALUES (new_id, name);
    RETURN new_id;
END $$;
