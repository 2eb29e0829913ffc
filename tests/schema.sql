-- Made from the catalog by tests/test_schema.py, which says how to write it again. Not a script to run.

CREATE SCHEMA pgqueue;
    GRANT U TO pgqueue_admin
    GRANT U TO pgqueue_producer
    GRANT U TO pgqueue_reader
    GRANT U TO pgqueue_worker

CREATE TYPE pgqueue.job_state AS ENUM ('available', 'running', 'completed', 'dead', 'cancelled');

TABLE pgqueue.alembic_version
    version_num character varying(32) NOT NULL
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
    CREATE UNIQUE INDEX alembic_version_pkc ON pgqueue.alembic_version USING btree (version_num)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_producer
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history
    PARTITION BY LIST (state)
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    GRANT ar TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT ar TO pgqueue_worker

TABLE pgqueue.history_cancelled
    PARTITION OF pgqueue.history FOR VALUES IN ('cancelled')
    PARTITION BY RANGE (finished_at)
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    CONSTRAINT history_cancelled_pkey PRIMARY KEY (id, finished_at)
    CREATE UNIQUE INDEX history_cancelled_pkey ON ONLY pgqueue.history_cancelled USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_cancelled_default
    PARTITION OF pgqueue.history_cancelled DEFAULT
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    CONSTRAINT history_cancelled_default_pkey PRIMARY KEY (id, finished_at)
    CREATE UNIQUE INDEX history_cancelled_default_pkey ON pgqueue.history_cancelled_default USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_completed
    PARTITION OF pgqueue.history FOR VALUES IN ('completed')
    PARTITION BY RANGE (finished_at)
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    CONSTRAINT history_completed_pkey PRIMARY KEY (id, finished_at)
    CREATE UNIQUE INDEX history_completed_pkey ON ONLY pgqueue.history_completed USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_completed_default
    PARTITION OF pgqueue.history_completed DEFAULT
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    CONSTRAINT history_completed_default_pkey PRIMARY KEY (id, finished_at)
    CREATE UNIQUE INDEX history_completed_default_pkey ON pgqueue.history_completed_default USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_dead
    PARTITION OF pgqueue.history FOR VALUES IN ('dead')
    PARTITION BY RANGE (finished_at)
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    CONSTRAINT history_dead_pkey PRIMARY KEY (id, finished_at)
    CREATE UNIQUE INDEX history_dead_pkey ON ONLY pgqueue.history_dead USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_dead_default
    PARTITION OF pgqueue.history_dead DEFAULT
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    CONSTRAINT history_dead_default_pkey PRIMARY KEY (id, finished_at)
    CREATE UNIQUE INDEX history_dead_default_pkey ON pgqueue.history_dead_default USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.jobs
    WITH (autovacuum_analyze_scale_factor=0.1, autovacuum_vacuum_cost_delay=0, autovacuum_vacuum_insert_scale_factor=0.2, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=2000, fillfactor=40)
    id bigint NOT NULL IDENTITY
    run_at timestamp with time zone NOT NULL DEFAULT now()
    created_at timestamp with time zone NOT NULL DEFAULT now()
    started_at timestamp with time zone
    lease_until timestamp with time zone
    lease_token bigint
    state pgqueue.job_state NOT NULL DEFAULT 'available'::pgqueue.job_state
    priority smallint NOT NULL DEFAULT 5
    attempt smallint NOT NULL DEFAULT 0
    max_attempts smallint NOT NULL DEFAULT 10
    cancel_requested boolean NOT NULL DEFAULT false
    queue text NOT NULL DEFAULT 'default'::text
    task text NOT NULL
    payload jsonb NOT NULL DEFAULT '{}'::jsonb
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    CONSTRAINT jobs_are_live CHECK ((state = ANY (ARRAY['available'::pgqueue.job_state, 'running'::pgqueue.job_state])))
    CONSTRAINT jobs_attempts_are_counted CHECK (((attempt >= 0) AND (max_attempts >= 1)))
    CONSTRAINT jobs_pkey PRIMARY KEY (id)
    CONSTRAINT jobs_priority_is_0_to_9 CHECK (((priority >= 0) AND (priority <= 9)))
    CONSTRAINT jobs_running_hold_a_lease CHECK (((state = 'running'::pgqueue.job_state) = (lease_token IS NOT NULL)))
    CREATE INDEX jobs_claim ON pgqueue.jobs USING btree (queue, priority, run_at, id) WHERE (priority >= 0)
    CREATE UNIQUE INDEX jobs_pkey ON pgqueue.jobs USING btree (id)
    CREATE UNIQUE INDEX jobs_unique_key ON pgqueue.jobs USING btree (unique_key) WHERE (unique_key IS NOT NULL)
    GRANT arwd TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT arwd TO pgqueue_worker

SEQUENCE pgqueue.jobs_id_seq
    GRANT U TO pgqueue_admin
    GRANT U TO pgqueue_worker

TABLE pgqueue.leases
    WITH (autovacuum_vacuum_cost_delay=0, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=500, fillfactor=70)
    token bigint NOT NULL
    lease_until timestamp with time zone NOT NULL
    worker text NOT NULL
    job_ids bigint[] NOT NULL
    CONSTRAINT leases_pkey PRIMARY KEY (token)
    CREATE UNIQUE INDEX leases_pkey ON pgqueue.leases USING btree (token)
    GRANT arwd TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT arwd TO pgqueue_worker

TABLE pgqueue.queues
    name text NOT NULL
    paused boolean NOT NULL DEFAULT false
    updated_at timestamp with time zone NOT NULL DEFAULT now()
    CONSTRAINT queues_pkey PRIMARY KEY (name)
    CREATE UNIQUE INDEX queues_pkey ON pgqueue.queues USING btree (name)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.retention
    state pgqueue.job_state NOT NULL
    keep interval NOT NULL
    CONSTRAINT retention_is_of_an_outcome CHECK ((state = ANY (ARRAY['completed'::pgqueue.job_state, 'dead'::pgqueue.job_state, 'cancelled'::pgqueue.job_state])))
    CONSTRAINT retention_is_positive CHECK ((keep >= '00:00:00'::interval))
    CONSTRAINT retention_pkey PRIMARY KEY (state)
    CREATE UNIQUE INDEX retention_pkey ON pgqueue.retention USING btree (state)
    GRANT rw TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.workers
    WITH (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=200, fillfactor=50)
    name text NOT NULL
    host text NOT NULL
    pid integer NOT NULL
    queues text[] NOT NULL
    slots integer NOT NULL
    running integer NOT NULL DEFAULT 0
    version text NOT NULL
    stopping boolean NOT NULL DEFAULT false
    started_at timestamp with time zone NOT NULL DEFAULT now()
    heartbeat_at timestamp with time zone NOT NULL DEFAULT now()
    CONSTRAINT workers_pkey PRIMARY KEY (name)
    CREATE UNIQUE INDEX workers_pkey ON pgqueue.workers USING btree (name)
    GRANT arwd TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT arwd TO pgqueue_worker

VIEW pgqueue.all_jobs
    id bigint
    queue text
    task text
    state text
    payload jsonb
    priority smallint
    attempt smallint
    max_attempts smallint
    run_at timestamp with time zone
    created_at timestamp with time zone
    started_at timestamp with time zone
    finished_at timestamp with time zone
    lease_until timestamp with time zone
    worker text
    cancel_requested boolean
    timeout interval
    unique_key text
    progress jsonb
    result jsonb
    errors jsonb
    meta jsonb
    AS SELECT id, queue, task, CASE WHEN ((state = 'available'::pgqueue.job_state) AND (run_at > now())) THEN CASE WHEN (attempt > 0) THEN 'retrying'::text ELSE 'scheduled'::text END ELSE (state)::text END AS state, payload, priority, attempt, max_attempts, run_at, created_at, started_at, NULL::timestamp with time zone AS finished_at, lease_until, worker, cancel_requested, timeout, unique_key, progress, NULL::jsonb AS result, errors, meta FROM pgqueue.jobs UNION ALL SELECT id, queue, task, (state)::text AS state, payload, priority, attempt, max_attempts, run_at, created_at, started_at, finished_at, NULL::timestamp with time zone AS lease_until, worker, false AS cancel_requested, timeout, unique_key, progress, result, errors, meta FROM pgqueue.history;
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

VIEW pgqueue.queue_stats
    queue text
    paused boolean
    available bigint
    scheduled bigint
    retrying bigint
    running bigint
    oldest_ready_seconds double precision
    AS SELECT COALESCE(queue, name) AS queue, COALESCE(paused, false) AS paused, count(*) FILTER (WHERE ((state = 'available'::pgqueue.job_state) AND (run_at <= now()))) AS available, count(*) FILTER (WHERE ((state = 'available'::pgqueue.job_state) AND (run_at > now()) AND (attempt = 0))) AS scheduled, count(*) FILTER (WHERE ((state = 'available'::pgqueue.job_state) AND (run_at > now()) AND (attempt > 0))) AS retrying, count(*) FILTER (WHERE (state = 'running'::pgqueue.job_state)) AS running, (COALESCE(EXTRACT(epoch FROM (now() - min(run_at) FILTER (WHERE ((state = 'available'::pgqueue.job_state) AND (run_at <= now()))))), (0)::numeric))::double precision AS oldest_ready_seconds FROM (pgqueue.jobs j FULL JOIN pgqueue.queues q ON ((name = queue))) GROUP BY COALESCE(queue, name), COALESCE(paused, false);
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.acceptable(task text, payload jsonb, queue text, priority integer, due timestamp with time zone, max_attempts integer, timeout interval, unique_key text, meta jsonb)
 RETURNS boolean
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$
    SELECT char_length(task) BETWEEN 1 AND 128
       AND char_length(queue) BETWEEN 1 AND 128
       AND CASE WHEN pg_column_size(payload) <= 4096 THEN true ELSE pgqueue.fits(payload) END
       AND priority BETWEEN 0 AND 9
       AND max_attempts BETWEEN 1 AND 32767
       AND due BETWEEN '1970-01-01Z' AND '9999-01-01Z'
       AND (timeout IS NULL OR timeout BETWEEN interval '1 microsecond' AND interval '36500 days')
       AND (unique_key IS NULL OR char_length(unique_key) BETWEEN 1 AND 512)
       AND (meta IS NULL OR (jsonb_typeof(meta) = 'object' AND pg_column_size(meta) <= 65536))
$function$;
-- pgqueue.acceptable(text,jsonb,text,integer,timestamp with time zone,integer,interval,text,jsonb)

CREATE OR REPLACE FUNCTION pgqueue.bell_key(queue text)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$ SELECT hashtextextended('pgqueue.bell ' || queue, 0) $function$;
-- pgqueue.bell_key(text)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.cancel(job_id bigint)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    found_state text;
BEGIN
    LOOP
        WITH gone AS (
            DELETE FROM pgqueue.jobs j WHERE j.id = job_id AND j.state = 'available' RETURNING j.*
        )
        INSERT INTO pgqueue.history AS h
            (id, run_at, created_at, started_at, lease_token, state, priority, attempt, max_attempts, queue, task, payload,
             timeout, unique_key, worker, progress, errors, meta)
        SELECT id, run_at, created_at, started_at, lease_token, 'cancelled', priority, attempt, max_attempts, queue, task, payload,
               timeout, unique_key, worker, progress, errors, meta FROM gone
        RETURNING h.state::text INTO found_state;
        EXIT WHEN found_state IS NOT NULL;
        UPDATE pgqueue.jobs j SET cancel_requested = true WHERE j.id = job_id AND j.state = 'running'
        RETURNING j.state::text INTO found_state;
        IF FOUND THEN
            IF pg_notification_queue_usage() < 0.5 THEN  -- else its worker hears of it when it renews the lease
                PERFORM pg_notify('pgqueue.cancel', job_id::text);
            END IF;
            EXIT;
        END IF;
        SELECT a.state INTO found_state FROM pgqueue.all_jobs a WHERE a.id = job_id;
        EXIT WHEN found_state IS NULL OR found_state IN ('completed', 'dead', 'cancelled');
        -- it changed its state between the statements: look again
    END LOOP;
    RETURN found_state;
END $function$;
-- pgqueue.cancel(bigint)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.due(delay interval, run_at timestamp with time zone)
 RETURNS timestamp with time zone
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$
    SELECT CASE WHEN delay IS NULL THEN coalesce(run_at, now())
                WHEN run_at IS NULL AND delay >= interval '0' THEN now() + delay END
$function$;
-- pgqueue.due(interval,timestamp with time zone)

CREATE OR REPLACE FUNCTION pgqueue.enqueue(task text, payload jsonb DEFAULT '{}'::jsonb, queue text DEFAULT 'default'::text, priority integer DEFAULT 5, delay interval DEFAULT NULL::interval, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, max_attempts integer DEFAULT 10, timeout interval DEFAULT NULL::interval, unique_key text DEFAULT NULL::text, meta jsonb DEFAULT NULL::jsonb)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_variable
DECLARE
    due timestamptz := pgqueue.due(delay, run_at);
    new_id bigint;
BEGIN
    IF pgqueue.acceptable(task, payload, queue, priority, due, max_attempts, timeout, unique_key, meta) IS NOT TRUE THEN
        PERFORM pgqueue.reject(task, payload, queue, priority, delay, run_at, max_attempts, timeout, unique_key, meta);
    END IF;
    IF unique_key IS NULL THEN
        INSERT INTO pgqueue.jobs AS j (task, payload, queue, priority, run_at, max_attempts, timeout, meta)
        VALUES (task, payload, queue, priority, due, max_attempts, timeout, meta)
        RETURNING j.id INTO new_id;
    ELSE
        LOOP
            INSERT INTO pgqueue.jobs AS j (task, payload, queue, priority, run_at, max_attempts, timeout, meta, unique_key)
            VALUES (task, payload, queue, priority, due, max_attempts, timeout, meta, unique_key)
            ON CONFLICT DO NOTHING
            RETURNING j.id INTO new_id;
            EXIT WHEN new_id IS NOT NULL;
            SELECT j.id INTO new_id FROM pgqueue.jobs j WHERE j.unique_key = enqueue.unique_key;
            IF new_id IS NOT NULL THEN
                RETURN new_id;
            END IF;  -- the holder finished between the two statements: try again
        END LOOP;
    END IF;
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
END $function$;
-- pgqueue.enqueue(text,jsonb,text,integer,interval,timestamp with time zone,integer,interval,text,jsonb)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_producer
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.enqueue_many(jobs jsonb)
 RETURNS SETOF bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_column
DECLARE
    given pgqueue.jobs[];
    bad record;
    missing integer;
    ids bigint[];
    item jsonb;
    index integer := 0;
BEGIN
    IF jsonb_typeof(enqueue_many.jobs) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'jobs must be a JSON array of objects';
    END IF;
    SELECT e.nth, jsonb_typeof(e.item) AS kind, k.key INTO bad
    FROM jsonb_array_elements(enqueue_many.jobs) WITH ORDINALITY e(item, nth)
    LEFT JOIN LATERAL (
        SELECT key FROM jsonb_object_keys(CASE WHEN jsonb_typeof(e.item) = 'object' THEN e.item ELSE '{}' END) AS key
        WHERE key NOT IN ('task', 'payload', 'queue', 'priority', 'delay', 'run_at', 'max_attempts', 'timeout', 'unique_key', 'meta')
        LIMIT 1) k ON true
    WHERE jsonb_typeof(e.item) <> 'object' OR k.key IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('job %s: ', bad.nth - 1)
            || CASE WHEN bad.kind <> 'object' THEN 'must be an object, not ' || bad.kind ELSE format('%L is not an option', bad.key) END;
    END IF;

    BEGIN
    SELECT array_agg(ROW(
        nextval('pgqueue.jobs_id_seq'), pgqueue.due(r.delay, r.run_at), now(), NULL, NULL, NULL,
        'available', coalesce(r.priority, 5), 0, coalesce(r.max_attempts, 10), false, coalesce(r.queue, 'default'), r.task,
        coalesce(e.item -> 'payload', '{}'), r.timeout, r.unique_key, NULL, NULL, NULL, r.meta)::pgqueue.jobs ORDER BY e.nth)
    INTO given
    FROM jsonb_array_elements(enqueue_many.jobs) WITH ORDINALITY e(item, nth)
    CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority smallint, delay interval,
        run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb);
    EXCEPTION WHEN data_exception THEN  -- a value is of the wrong kind: find its element
        FOR item IN SELECT e FROM jsonb_array_elements(enqueue_many.jobs) e LOOP
            BEGIN
                PERFORM FROM jsonb_to_record(item) AS r(task text, queue text, priority smallint, delay interval,
                    run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb);
            EXCEPTION WHEN data_exception THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('job %s: %s', index, SQLERRM);
            END;
            index := index + 1;
        END LOOP;
        RAISE;
    END;

    SELECT e.nth, r.*, e.item -> 'payload' AS payload INTO bad
    FROM unnest(given) WITH ORDINALITY AS g(id, run_at, created_at, started_at, lease_until, lease_token, state, priority,
        attempt, max_attempts, cancel_requested, queue, task, payload, timeout, unique_key, worker, progress, errors, meta, nth)
    CROSS JOIN LATERAL (SELECT enqueue_many.jobs -> (g.nth - 1)::integer AS item, g.nth) e
    CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority smallint, delay interval,
        run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb)
    WHERE pgqueue.acceptable(g.task, g.payload, g.queue, g.priority::integer, g.run_at, g.max_attempts::integer, g.timeout,
                             g.unique_key, g.meta) IS NOT TRUE
    LIMIT 1;
    IF FOUND THEN
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
            lease_until, lease_token, state, priority, attempt, max_attempts, cancel_requested, queue, task, payload, timeout,
            unique_key, worker, progress, errors, meta, nth)) g
        LEFT JOIN pgqueue.jobs held ON g.unique_key IS NOT NULL AND held.unique_key = g.unique_key;
        EXIT WHEN missing = 0;  -- else a holder finished between the two statements: its key is free, try again
    END LOOP;
    PERFORM pgqueue.ring(q.queue)
    FROM (SELECT DISTINCT g.queue FROM unnest(given) g WHERE g.run_at <= now() + interval '1 minute') q;
    RETURN QUERY SELECT unnest(ids);
END $function$;
-- pgqueue.enqueue_many(jsonb)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_producer
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.fits(payload jsonb)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT CASE WHEN pg_column_size(payload) <= 4096 THEN true
                WHEN octet_length(payload::text) <= 1048576 THEN true
                ELSE octet_length(replace(replace(payload::text, ', ', ','), ': ', ':')) <= 1048576 END
$function$;
-- pgqueue.fits(jsonb)

CREATE OR REPLACE FUNCTION pgqueue.pause(queue text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF (char_length(queue) BETWEEN 1 AND 128) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'queue must have 1 to 128 characters';
    END IF;
    INSERT INTO pgqueue.queues AS q (name, paused) VALUES (queue, true)
    ON CONFLICT (name) DO UPDATE SET paused = true, updated_at = now() WHERE NOT q.paused;
    RETURN FOUND;
END $function$;
-- pgqueue.pause(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.prune(ahead integer DEFAULT 3)
 RETURNS SETOF text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
 SET lock_timeout TO '100ms'
AS $function$
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
END $function$;
-- pgqueue.prune(integer)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.purge(queue text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    purged bigint;
BEGIN
    DELETE FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.state = 'available';
    GET DIAGNOSTICS purged = ROW_COUNT;
    RETURN purged;
END $function$;
-- pgqueue.purge(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.purge_dead(queue text DEFAULT NULL::text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    purged bigint;
BEGIN
    DELETE FROM pgqueue.history h WHERE h.state = 'dead' AND (purge_dead.queue IS NULL OR h.queue = purge_dead.queue);
    GET DIAGNOSTICS purged = ROW_COUNT;
    RETURN purged;
END $function$;
-- pgqueue.purge_dead(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.redrive(queue text DEFAULT NULL::text, task text DEFAULT NULL::text, max_jobs integer DEFAULT 1000)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_variable
DECLARE
    moved bigint;
BEGIN
    WITH chosen AS MATERIALIZED (
        SELECT h.id FROM pgqueue.history h
        WHERE h.state = 'dead' AND (queue IS NULL OR h.queue = queue) AND (task IS NULL OR h.task = task)
          AND NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.unique_key = h.unique_key)
        ORDER BY h.finished_at, h.id LIMIT max_jobs
    ), back AS MATERIALIZED (
        SELECT r.id, r.queue AS name FROM pgqueue.redrive_ids(ARRAY(SELECT c.id FROM chosen c)) r
    ), rung AS MATERIALIZED (
        SELECT pgqueue.ring(b.name) FROM (SELECT DISTINCT name FROM back) b
    )
    SELECT count(*) + 0 * (SELECT count(*) FROM rung) INTO moved FROM back;
    RETURN moved;
END $function$;
-- pgqueue.redrive(text,text,integer)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.redrive_ids(job_ids bigint[])
 RETURNS TABLE(id bigint, queue text)
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    WITH found AS MATERIALIZED (
        SELECT h.* FROM pgqueue.history h WHERE h.id = ANY(job_ids) AND h.state IN ('dead', 'cancelled') FOR UPDATE
    ), back AS (
        INSERT INTO pgqueue.jobs AS j (id, run_at, created_at, priority, max_attempts, queue, task, payload, timeout, unique_key, errors, meta)
        SELECT f.id, now(), f.created_at, f.priority, f.max_attempts, f.queue, f.task, f.payload, f.timeout, f.unique_key, f.errors, f.meta
        FROM found f
        ON CONFLICT DO NOTHING
        RETURNING j.id, j.queue
    ), gone AS (
        DELETE FROM pgqueue.history h USING found f
        WHERE h.id = f.id AND h.state = f.state AND h.finished_at = f.finished_at AND h.id IN (SELECT b.id FROM back b)
    )
    SELECT b.id, b.queue FROM back b
$function$;
-- pgqueue.redrive_ids(bigint[])

CREATE OR REPLACE FUNCTION pgqueue.reject(task text, payload jsonb, queue text, priority integer, delay interval, run_at timestamp with time zone, max_attempts integer, timeout interval, unique_key text, meta jsonb, place text DEFAULT ''::text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
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
END $function$;
-- pgqueue.reject(text,jsonb,text,integer,interval,timestamp with time zone,integer,interval,text,jsonb,text)

CREATE OR REPLACE FUNCTION pgqueue.resume(queue text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    UPDATE pgqueue.queues q SET paused = false, updated_at = now() WHERE q.name = queue AND q.paused;
    IF FOUND THEN
        PERFORM pgqueue.ring(queue);
        RETURN true;
    END IF;
    RETURN false;
END $function$;
-- pgqueue.resume(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.retry(job_id bigint)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    found_state text;
    found_queue text;
BEGIN
    UPDATE pgqueue.jobs j SET run_at = now() WHERE j.id = job_id AND j.state = 'available' AND j.run_at > now()
    RETURNING 'available', j.queue INTO found_state, found_queue;
    IF found_state IS NULL THEN
        SELECT 'available', r.queue INTO found_state, found_queue FROM pgqueue.redrive_ids(ARRAY[job_id]) r;
    END IF;
    IF found_state IS NULL THEN
        SELECT a.state INTO found_state FROM pgqueue.all_jobs a WHERE a.id = job_id;
    ELSE
        PERFORM pgqueue.ring(found_queue);
    END IF;
    RETURN found_state;
END $function$;
-- pgqueue.retry(bigint)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.ring(queue text)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF pg_try_advisory_lock(hashtextextended('pgqueue.bell ' || queue, 0)) THEN
        PERFORM pg_advisory_unlock(hashtextextended('pgqueue.bell ' || queue, 0));
    ELSIF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('pgqueue.wake', queue);
    END IF;
END $function$;
-- pgqueue.ring(text)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

-- rows of pgqueue.retention: [('cancelled', '30 days'), ('completed', '7 days'), ('dead', '90 days')]
