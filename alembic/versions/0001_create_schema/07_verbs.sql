-- Take a job back. Waiting: it ends as cancelled at once. Running: its worker is told, and it can't be retried.
-- Answers the state it is in now ('running' = asked), or NULL when there is no such job.
CREATE FUNCTION pgqueue.cancel(job_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_state text;
    is_linked boolean;
BEGIN
    LOOP
        -- Who ends its upstream locks first the batch, then what is blocked: so do we.
        PERFORM FROM pgqueue.batches b
        WHERE b.id = (SELECT j.batch_id FROM pgqueue.jobs j WHERE j.id = job_id AND j.state = 'blocked') FOR NO KEY UPDATE;
        WITH gone AS (
            DELETE FROM pgqueue.jobs j WHERE j.id = job_id AND j.state IN ('available', 'blocked') RETURNING j.*
        ), landed AS (
            INSERT INTO pgqueue.history AS h
                (id, run_at, created_at, started_at, lease_token, state, priority, attempt, max_attempts, queue, task, payload,
                 timeout, unique_key, worker, progress, errors, meta, group_key, batch_id, depends_on)
            SELECT id, coalesce(due_at, run_at), created_at, started_at, lease_token, 'cancelled', priority, attempt, max_attempts, queue, task,
                   payload, timeout, unique_key, worker, progress, errors, meta, group_key, batch_id, depends_on FROM gone
        )
        SELECT 'cancelled', g.has_followers OR g.batch_id IS NOT NULL OR g.depends_on IS NOT NULL INTO found_state, is_linked FROM gone g;
        IF is_linked THEN
            DELETE FROM pgqueue.dependencies d WHERE d.job_id = cancel.job_id;
            PERFORM pgqueue.settle(ARRAY[cancel.job_id]);
        END IF;
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
END $$;

-- An operator's verb: run a dead or cancelled job again with all its attempts; a waiting one now, also a blocked one, whatever
-- it waits for. One that was cancelled before it ever ran waits again for what it depends on, until that has completed.
-- Answers the state it is in now: 'available' or 'blocked' when it will run, else the state that forbids it; NULL: no such job.
CREATE FUNCTION pgqueue.retry(job_id bigint) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_state text;
    found_queue text;
    was_blocked boolean;
    upstream bigint[];
BEGIN
    WITH waiting AS MATERIALIZED (
        SELECT j.id, j.state = 'blocked' AS blocked FROM pgqueue.jobs j
        WHERE j.id = job_id AND (j.state = 'blocked' OR (j.state = 'available' AND j.run_at > now())) FOR UPDATE
    )
    UPDATE pgqueue.jobs j SET run_at = now(), due_at = NULL, state = 'available', pending = NULL FROM waiting w WHERE j.id = w.id
    RETURNING 'available', j.queue, w.blocked INTO found_state, found_queue, was_blocked;
    IF was_blocked THEN
        DELETE FROM pgqueue.dependencies d WHERE d.job_id = retry.job_id;
    END IF;
    IF found_state IS NULL THEN
        SELECT a.state, CASE WHEN a.started_at IS NULL THEN a.depends_on END INTO found_state, upstream FROM pgqueue.all_jobs a WHERE a.id = job_id;
        IF found_state IS NULL OR found_state NOT IN ('dead', 'cancelled') THEN
            RETURN found_state;
        END IF;
        PERFORM pgqueue.unmet(upstream, 'hold', strict => false) WHERE upstream IS NOT NULL;  -- locked first, as everybody does
        SELECT r.queue INTO found_queue FROM pgqueue.redrive_ids(ARRAY[job_id]) r;
        IF NOT FOUND THEN  -- a live job holds its unique_key, or somebody was faster
            SELECT a.state INTO found_state FROM pgqueue.all_jobs a WHERE a.id = job_id;
            RETURN found_state;
        END IF;
        IF pgqueue.wait_again(job_id, upstream) THEN
            RETURN 'blocked';
        END IF;
    END IF;
    PERFORM pgqueue.ring(found_queue);
    RETURN 'available';
END $$;

-- Move these dead or cancelled jobs back to the living. One whose unique_key is held by a live job stays where it is.
CREATE FUNCTION pgqueue.redrive_ids(job_ids bigint[]) RETURNS TABLE (id bigint, queue text)
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH found AS MATERIALIZED (
        SELECT h.* FROM pgqueue.history h WHERE h.id = ANY(job_ids) AND h.state IN ('dead', 'cancelled') ORDER BY h.id FOR UPDATE
    ), back AS (
        INSERT INTO pgqueue.jobs AS j (id, run_at, created_at, priority, max_attempts, queue, task, payload, timeout, unique_key, errors, meta,
            group_key, batch_id, depends_on, has_followers)
        SELECT f.id, now(), f.created_at, f.priority, f.max_attempts, f.queue, f.task, f.payload, f.timeout, f.unique_key, f.errors, f.meta,
            f.group_key, f.batch_id, f.depends_on, true  -- somebody may have begun to wait for it while we took it
        FROM found f
        ON CONFLICT DO NOTHING
        RETURNING j.id, j.queue
    ), n AS MATERIALIZED (
        SELECT f.batch_id, count(*) FILTER (WHERE f.state = 'dead') AS dead, count(*) FILTER (WHERE f.state = 'cancelled') AS cancelled
        FROM found f WHERE f.batch_id IS NOT NULL AND f.id IN (SELECT x.id FROM back x) GROUP BY f.batch_id
    ), locked AS MATERIALIZED (
        SELECT b.id FROM pgqueue.batches b WHERE b.id = ANY (ARRAY(SELECT n.batch_id FROM n)) ORDER BY b.id FOR NO KEY UPDATE
    ), uncounted AS (  -- its batch waits for it again
        UPDATE pgqueue.batches b SET dead = b.dead - n.dead, cancelled = b.cancelled - n.cancelled, finished_at = NULL
        FROM n WHERE b.id = ANY (ARRAY(SELECT l.id FROM locked l)) AND b.id = n.batch_id
    ), gone AS (
        DELETE FROM pgqueue.history h USING found f
        WHERE h.id = ANY (job_ids) AND h.id = f.id AND h.state = f.state AND h.finished_at = f.finished_at AND h.id IN (SELECT b.id FROM back b)
    )
    SELECT b.id, b.queue FROM back b
$$;

-- A job has come back to the living that never ran: it waits again for those of its upstreams that have not completed, and this
-- time holds when one of them is dead. Answers whether there are any. What is no longer known, or waits for it, is not minded.
CREATE FUNCTION pgqueue.wait_again(job_id bigint, upstream bigint[]) RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF upstream IS NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue.cycles', 0));
    SELECT u.waiting || u.failed INTO upstream FROM pgqueue.unmet(upstream, 'hold', strict => false) u;
    IF upstream = '{}' OR pgqueue.waits_for(job_id, upstream) THEN
        RETURN false;
    END IF;
    UPDATE pgqueue.jobs j SET state = 'blocked', run_at = 'infinity', due_at = j.run_at, pending = cardinality(upstream)
    WHERE j.id = job_id;
    INSERT INTO pgqueue.dependencies SELECT u, job_id, 'hold' FROM unnest(upstream) u;
    RETURN true;
END $$;

-- Retry many dead letters, oldest first; answers how many will run again.
CREATE FUNCTION pgqueue.redrive(queue text DEFAULT NULL, task text DEFAULT NULL, max_jobs integer DEFAULT 1000) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
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
END $$;

-- Delete the waiting jobs of a queue for good, the blocked ones, too; answers how many. Running jobs and history stay.
CREATE FUNCTION pgqueue.purge(queue text) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    purged bigint;
    linked bigint[];
    complete bigint[];
BEGIN
    -- Locks as in cancel_batch: what may run, the batches, what is blocked.
    PERFORM FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.state = 'available' ORDER BY j.id FOR UPDATE;
    PERFORM FROM pgqueue.batches b WHERE b.id IN (
        SELECT j.batch_id FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.batch_id IS NOT NULL AND j.state = 'blocked')
    ORDER BY b.id FOR NO KEY UPDATE;
    PERFORM FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.state = 'blocked' ORDER BY j.id FOR UPDATE;
    WITH gone AS (
        DELETE FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.state IN ('available', 'blocked')
        RETURNING j.id, j.batch_id, j.has_followers, j.depends_on
    ), n AS MATERIALIZED (
        SELECT g.batch_id, count(*) AS gone FROM gone g WHERE g.batch_id IS NOT NULL GROUP BY g.batch_id
    ), locked AS MATERIALIZED (
        SELECT b.id FROM pgqueue.batches b WHERE b.id = ANY (ARRAY(SELECT n.batch_id FROM n)) ORDER BY b.id FOR NO KEY UPDATE
    ), counted AS (
        UPDATE pgqueue.batches b SET cancelled = b.cancelled + n.gone,
            finished_at = CASE WHEN b.completed + b.dead + b.cancelled + n.gone >= b.total THEN now() END
        FROM n WHERE b.id = ANY (ARRAY(SELECT l.id FROM locked l)) AND b.id = n.batch_id
        RETURNING b.id, b.finished_at
    )
    SELECT count(*), coalesce(array_agg(g.id) FILTER (WHERE g.has_followers OR g.depends_on IS NOT NULL), '{}'),
           ARRAY(SELECT c.id FROM counted c WHERE c.finished_at IS NOT NULL)
    INTO purged, linked, complete FROM gone g;
    DELETE FROM pgqueue.dependencies d WHERE d.job_id = ANY (linked);
    PERFORM pgqueue.settle(linked || complete);  -- counted above; who waited for them ends, or goes on where on_dead says so
    RETURN purged;
END $$;

-- Delete dead letters for good; answers how many. Jobs that were held until one of them would be retried are cancelled.
CREATE FUNCTION pgqueue.purge_dead(queue text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    purged bigint;
    awaited bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM pgqueue.history h WHERE h.state = 'dead' AND (purge_dead.queue IS NULL OR h.queue = purge_dead.queue) RETURNING h.id
    )
    SELECT count(*), coalesce(array_agg(g.id) FILTER (WHERE d.upstream_id IS NOT NULL), '{}') INTO purged, awaited
    FROM gone g LEFT JOIN (SELECT DISTINCT x.upstream_id FROM pgqueue.dependencies x) d ON d.upstream_id = g.id;
    PERFORM pgqueue.settle(awaited);
    RETURN purged;
END $$;

-- Workers take nothing more from a paused queue; what runs goes on. Both answer whether it was a change.
CREATE FUNCTION pgqueue.pause(queue text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (char_length(queue) BETWEEN 1 AND 128) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'queue must have 1 to 128 characters';
    END IF;
    INSERT INTO pgqueue.queues AS q (name, paused) VALUES (queue, true)
    ON CONFLICT (name) DO UPDATE SET paused = true, updated_at = now() WHERE NOT q.paused;
    RETURN FOUND;
END $$;

CREATE FUNCTION pgqueue.resume(queue text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE pgqueue.queues q SET paused = false, updated_at = now() WHERE q.name = queue AND q.paused;
    IF FOUND THEN
        PERFORM pgqueue.ring(queue);
        RETURN true;
    END IF;
    RETURN false;
END $$;
