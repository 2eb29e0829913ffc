-- Schedules: rows that tick. When is worked out by workers (pgqueue/timetable.py); that a tick fires once, and not before
-- its time by this server's clock, is decided here. Edit the rows at any time, with the functions below or by hand.
CREATE TABLE pgqueue.schedules (
    name text NOT NULL,
    expression text NOT NULL,
    time_zone text NOT NULL DEFAULT 'UTC',
    task text NOT NULL,
    payload jsonb NOT NULL DEFAULT '{}',
    queue text NOT NULL DEFAULT 'default',
    priority smallint NOT NULL DEFAULT 5,
    max_attempts smallint NOT NULL DEFAULT 10,
    timeout interval,
    misfire text NOT NULL DEFAULT 'latest',  -- of the ticks that are later than `grace`: fire none, the latest, all
    grace interval NOT NULL DEFAULT '1 minute',
    overlap text NOT NULL DEFAULT 'allow',  -- skip: drop a tick while the job of an earlier one is live
    unique_key text,  -- of its jobs; a tick is dropped while a live job holds it
    group_key text,
    paused boolean NOT NULL DEFAULT false,
    declaration jsonb,  -- what the code said; NULL: made by hand
    since timestamptz NOT NULL DEFAULT now(),  -- it ticks after this: made, resumed, or given another time
    next_tick timestamptz,  -- NULL: the next worker that looks works it out
    last_tick timestamptz,  -- the last one that fired, and its job
    last_job_id bigint,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT schedules_pkey PRIMARY KEY (name),
    CONSTRAINT schedules_names_have_1_to_128_characters CHECK (char_length(name) BETWEEN 1 AND 128
        AND char_length(task) BETWEEN 1 AND 128 AND char_length(queue) BETWEEN 1 AND 128 AND char_length(time_zone) BETWEEN 1 AND 64),
    CONSTRAINT schedules_keys_have_1_to_512_characters CHECK (char_length(unique_key) BETWEEN 1 AND 512
        AND char_length(group_key) BETWEEN 1 AND 512),
    CONSTRAINT schedules_expression_is_cron_or_every CHECK (char_length(expression) <= 256
        AND expression ~* '^(@?every\s+\S.*|@[a-z]+|\S+(\s+\S+){4,5})$'),
    CONSTRAINT schedules_payload_is_at_most_1_mib CHECK (octet_length(payload::text) <= 1048576
        OR octet_length(replace(replace(payload::text, ', ', ','), ': ', ':')) <= 1048576),  -- as pgqueue.fits, which is nobody's
    CONSTRAINT schedules_priority_is_0_to_9 CHECK (priority BETWEEN 0 AND 9),
    CONSTRAINT schedules_max_attempts_is_positive CHECK (max_attempts >= 1),
    CONSTRAINT schedules_timeout_is_positive CHECK (timeout BETWEEN interval '1 microsecond' AND interval '36500 days'),
    CONSTRAINT schedules_misfire_is_skip_latest_or_all CHECK (misfire IN ('skip', 'latest', 'all')),
    CONSTRAINT schedules_grace_is_a_second_or_more CHECK (grace BETWEEN interval '1 second' AND interval '36500 days'),
    CONSTRAINT schedules_overlap_is_allow_or_skip CHECK (overlap IN ('allow', 'skip')),
    CONSTRAINT schedules_times_are_from_1970_to_9998 CHECK (since BETWEEN '1970-01-01Z' AND '9999-01-01Z'
        AND next_tick BETWEEN '1970-01-01Z' AND '9999-01-01Z' AND last_tick BETWEEN '1970-01-01Z' AND '9999-01-01Z')
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0);
-- What is due next; those that nobody has worked out yet come first.
CREATE INDEX schedules_next ON pgqueue.schedules (coalesce(next_tick, '-infinity')) WHERE NOT paused;

-- Which ticks have fired: the promise that one fires once, whatever was edited, thawed or backfilled. Kept for 30 days.
CREATE TABLE pgqueue.ticks (
    schedule text NOT NULL,
    tick timestamptz NOT NULL,
    job_id bigint NOT NULL,
    fired_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ticks_pkey PRIMARY KEY (schedule, tick),
    CONSTRAINT ticks_schedule_fkey FOREIGN KEY (schedule) REFERENCES pgqueue.schedules ON DELETE CASCADE
);

-- An edit by whatever way: other times count from now on; what was missed while paused stays missed. Workers look sooner.
CREATE FUNCTION pgqueue.on_schedule_edit() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF (NEW.expression, NEW.time_zone) IS DISTINCT FROM (OLD.expression, OLD.time_zone) OR (OLD.paused AND NOT NEW.paused) THEN
            NEW.since := now();
            NEW.next_tick := NULL;
        ELSIF NEW.next_tick IS NOT DISTINCT FROM OLD.next_tick OR NEW.next_tick > OLD.next_tick
              OR (OLD.next_tick IS NULL AND NEW.next_tick IS NOT NULL) THEN  -- a tick, or nothing that a worker waits for
            RETURN NEW;
        END IF;
    END IF;
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('pgqueue.schedules', '');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER schedules_edit BEFORE INSERT OR UPDATE ON pgqueue.schedules
    FOR EACH ROW EXECUTE FUNCTION pgqueue.on_schedule_edit();

-- Fire these ticks: an array of {name, expression, time_zone, due, fire: [...], next}, worked out from what a worker saw at
-- `looked_at` (this server's clock). Each schedule is passed over when another worker was first or it was edited or paused since
-- (next_tick is no longer `due`), and all of them when the worker has slept over its plan: what is late by then is
-- for the misfire policy. Answers the ticks that were worked off, with their jobs; NULL: dropped, fired before, or none to fire.
CREATE FUNCTION pgqueue.tick(plans jsonb, looked_at timestamptz) RETURNS TABLE (schedule text, tick timestamptz, job_id bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    plan record;
    due pgqueue.schedules;
    fired timestamptz;
    fired_id bigint;
BEGIN
    IF now() - looked_at > interval '5 seconds' THEN
        RETURN;
    END IF;
    FOR plan IN
        SELECT * FROM jsonb_to_recordset(plans)
            AS p(name text, expression text, time_zone text, due timestamptz, fire timestamptz[], next timestamptz)
        ORDER BY p.name COLLATE "C"
    LOOP
        SELECT s.* INTO due FROM pgqueue.schedules s
        WHERE s.name = plan.name AND s.next_tick IS NOT DISTINCT FROM plan.due AND NOT s.paused
          AND s.expression = plan.expression AND s.time_zone = plan.time_zone
          AND (SELECT bool_and(f <= now()) FROM unnest(plan.fire) f) IS NOT FALSE AND plan.next IS NOT NULL
        FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        schedule := due.name;
        fired := due.last_tick;
        fired_id := due.last_job_id;
        FOREACH tick IN ARRAY coalesce(nullif(plan.fire, '{}'), ARRAY[NULL::timestamptz]) LOOP
            CONTINUE WHEN due.misfire = 'skip' AND tick < now() - due.grace;  -- it has become too late since
            job_id := pgqueue.fire(due, tick, coalesce(due.unique_key, CASE WHEN due.overlap = 'skip' THEN 'schedule:' || due.name END), '{}');
            IF job_id IS NOT NULL THEN
                fired := tick;
                fired_id := job_id;
            END IF;
            RETURN NEXT;
        END LOOP;
        UPDATE pgqueue.schedules s SET next_tick = plan.next, last_tick = fired, last_job_id = fired_id WHERE s.name = due.name;
    END LOOP;
END $$;

-- One job for one tick, and its row in ticks; NULL when it has fired before, or a live job holds the key. The caller holds the schedule.
CREATE FUNCTION pgqueue.fire(due pgqueue.schedules, tick timestamptz, unique_key text, note jsonb) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' AS $$
DECLARE
    job record;
BEGIN
    IF tick IS NULL OR EXISTS (SELECT FROM pgqueue.ticks t WHERE t.schedule = due.name AND t.tick = fire.tick) THEN
        RETURN NULL;
    END IF;
    SELECT s.id, s.created INTO job FROM pgqueue.submit_one(
        task => due.task, payload => due.payload, queue => due.queue, priority => due.priority::integer,
        max_attempts => due.max_attempts::integer, timeout => due.timeout, unique_key => unique_key, group_key => due.group_key,
        meta => jsonb_build_object('schedule', due.name, 'tick', tick) || note) s;
    IF NOT job.created THEN
        RETURN NULL;
    END IF;
    INSERT INTO pgqueue.ticks (schedule, tick, job_id) VALUES (due.name, fire.tick, job.id);
    RETURN job.id;
END $$;

-- Enqueue a job for each of these past ticks that has not fired, whatever the policies say; answers their ids.
CREATE FUNCTION pgqueue.backfill(name text, ticks timestamptz[]) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    due pgqueue.schedules;
    tick timestamptz;
    job_id bigint;
BEGIN
    SELECT s.* INTO due FROM pgqueue.schedules s WHERE s.name = backfill.name FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('there is no schedule %L', name);
    END IF;
    IF EXISTS (SELECT FROM unnest(ticks) t WHERE t > now() OR NOT isfinite(t) OR t IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'only ticks of the past can be backfilled';
    END IF;
    FOR tick IN SELECT DISTINCT t FROM unnest(ticks) t ORDER BY t LOOP
        job_id := pgqueue.fire(due, tick, NULL, '{"backfill": true}');
        IF job_id IS NOT NULL THEN
            RETURN NEXT job_id;
        END IF;
    END LOOP;
END $$;

-- What the code of an application declares, as an array of {name, expression, …}. A schedule is written when it is new or its
-- declaration has changed: what people edited or paused since stays as it is until then. Answers the names written.
CREATE FUNCTION pgqueue.declare_schedules(schedules jsonb) RETURNS SETOF text
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO pgqueue.schedules AS s
        (name, expression, time_zone, task, payload, queue, priority, max_attempts, timeout, misfire, grace, overlap, unique_key,
         group_key, declaration)
    SELECT d.name, d.expression, d.time_zone, d.task, d.payload, d.queue, d.priority, d.max_attempts, d.timeout, d.misfire, d.grace,
           d.overlap, d.unique_key, d.group_key, item
    FROM jsonb_array_elements(schedules) item
    CROSS JOIN LATERAL jsonb_to_record(item) AS d(name text, expression text, time_zone text, task text, payload jsonb, queue text,
        priority smallint, max_attempts smallint, timeout interval, misfire text, grace interval, overlap text, unique_key text,
        group_key text)
    WHERE NOT EXISTS (SELECT FROM pgqueue.schedules old WHERE old.name = d.name AND old.declaration = item)
    ORDER BY d.name COLLATE "C"  -- one order for everybody: workers that start together wait, not deadlock
    ON CONFLICT (name) DO UPDATE SET expression = excluded.expression, time_zone = excluded.time_zone, task = excluded.task,
        payload = excluded.payload, queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts,
        timeout = excluded.timeout, misfire = excluded.misfire, grace = excluded.grace, overlap = excluded.overlap,
        unique_key = excluded.unique_key, group_key = excluded.group_key, declaration = excluded.declaration, updated_at = now()
    WHERE s.declaration IS DISTINCT FROM excluded.declaration
    RETURNING s.name
$$;

-- A paused schedule does not tick, and what it missed it will not make up for. Both answer whether it was a change; NULL: no
-- such schedule.
CREATE FUNCTION pgqueue.pause_schedule(name text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH held AS MATERIALIZED (SELECT s.name, s.paused FROM pgqueue.schedules s WHERE s.name = pause_schedule.name FOR NO KEY UPDATE),
    changed AS (UPDATE pgqueue.schedules s SET paused = true, updated_at = now() FROM held WHERE s.name = held.name AND NOT held.paused)
    SELECT NOT held.paused FROM held
$$;

CREATE FUNCTION pgqueue.resume_schedule(name text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH held AS MATERIALIZED (SELECT s.name, s.paused FROM pgqueue.schedules s WHERE s.name = resume_schedule.name FOR NO KEY UPDATE),
    changed AS (UPDATE pgqueue.schedules s SET paused = false, updated_at = now() FROM held WHERE s.name = held.name AND held.paused)
    SELECT held.paused FROM held
$$;

-- Delete a schedule and the memory of its ticks; its jobs stay. Answers whether there was one.
CREATE FUNCTION pgqueue.remove_schedule(name text) RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH gone AS (DELETE FROM pgqueue.schedules s WHERE s.name = remove_schedule.name RETURNING s.name)
    SELECT count(*) > 0 FROM gone
$$;

-- Forget which ticks fired more than 30 days ago; answers how many.
CREATE FUNCTION pgqueue.forget_ticks() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    WITH gone AS (DELETE FROM pgqueue.ticks t WHERE t.fired_at < now() - interval '30 days' RETURNING 1)
    SELECT count(*) FROM gone
$$;
