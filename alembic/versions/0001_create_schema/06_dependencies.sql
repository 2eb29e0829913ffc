-- Dependencies and batches: who waits for whose end. An edge counts in its job's `pending`; the last one that is met
-- makes the job available. Nothing here is touched by jobs that have no followers and no batch.

-- Which of these upstreams have still to end (waiting), and which have ended badly where that matters (failed). Whoever ends
-- or revives one of them later waits for our commit, and then sees the edge: live ones are locked and told that they have
-- followers, dead ones and batches are locked. One that is moving just now (it ends, or is retried, between our looks at the two
-- tables) is looked for again, in up to five rounds; mostly all are live and the first is the last. strict: an unknown id is refused.
-- Locks: as whoever ends them takes them: jobs that may end by id, batches by id, blocked jobs by id.
CREATE FUNCTION pgqueue.unmet(depends_on bigint[], on_dead text, strict boolean, OUT waiting bigint[], OUT failed bigint[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off AS $$
#variable_conflict use_column
DECLARE
    absent bigint[] := ARRAY(SELECT DISTINCT u FROM unnest(unmet.depends_on) u WHERE u IS NOT NULL ORDER BY 1);
    live bigint[];
    blocked bigint[];
    open_batches bigint[];
    met bigint[];
    bad bigint[];
    round integer;
BEGIN
    waiting := '{}';
    failed := '{}';
    FOR round IN 1 .. 5 LOOP
        EXIT WHEN absent = '{}';
        live := ARRAY(SELECT j.id FROM pgqueue.jobs j WHERE j.id = ANY (absent) AND j.state <> 'blocked' ORDER BY j.id FOR NO KEY UPDATE);
        blocked := ARRAY(SELECT j.id FROM pgqueue.jobs j WHERE j.id = ANY (absent) AND j.state = 'blocked');
        met := '{}';
        bad := '{}';
        open_batches := '{}';
        IF cardinality(live) + cardinality(blocked) < cardinality(absent) THEN
            bad := ARRAY(SELECT h.id FROM pgqueue.history h
                         WHERE h.id = ANY (absent) AND h.state IN ('dead', 'cancelled') ORDER BY h.id FOR KEY SHARE);
            met := ARRAY(SELECT h.id FROM pgqueue.history h WHERE h.id = ANY (absent) AND h.state = 'completed');
            WITH held AS MATERIALIZED (
                SELECT b.id, b.completed + b.dead + b.cancelled < b.total AS is_open, b.dead + b.cancelled > 0 AS is_bad
                FROM pgqueue.batches b WHERE b.id = ANY (absent) ORDER BY b.id FOR NO KEY UPDATE
            )
            SELECT coalesce(array_agg(b.id) FILTER (WHERE b.is_open), '{}'),
                   bad || coalesce(array_agg(b.id) FILTER (WHERE NOT b.is_open AND b.is_bad), '{}'),
                   met || coalesce(array_agg(b.id) FILTER (WHERE NOT b.is_open AND NOT b.is_bad), '{}')
            INTO open_batches, bad, met FROM held b;
        END IF;
        IF blocked <> '{}' THEN
            live := live || ARRAY(SELECT j.id FROM pgqueue.jobs j WHERE j.id = ANY (blocked) ORDER BY j.id FOR NO KEY UPDATE);
        END IF;
        UPDATE pgqueue.jobs j SET has_followers = true WHERE j.id = ANY (live) AND NOT j.has_followers;
        waiting := waiting || live || open_batches;
        IF on_dead <> 'continue' THEN
            failed := failed || bad;
        END IF;
        EXIT WHEN cardinality(live) = cardinality(absent);
        absent := ARRAY(SELECT u FROM unnest(absent) u EXCEPT SELECT s FROM unnest(live || open_batches || bad || met) s ORDER BY 1);
        IF absent <> '{}' AND round = 5 AND strict THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('depends_on: there is no job or batch %s', absent[1]);
        END IF;
    END LOOP;
END $$;

-- Whether any of these jobs or batches waits for `target`, through whatever is between: then `target` must not wait for it.
-- Callers hold the lock `pgqueue.cycles`: two edges that would close one circle are looked at one after the other.
CREATE FUNCTION pgqueue.waits_for(target bigint, ids bigint[]) RETURNS boolean
LANGUAGE sql SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE behind AS (
        SELECT target AS id
        UNION
        SELECT next.id FROM behind b CROSS JOIN LATERAL (
            (SELECT d.job_id AS id FROM pgqueue.dependencies d WHERE d.upstream_id = b.id OFFSET 0)
            UNION ALL (SELECT j.batch_id FROM pgqueue.jobs j WHERE j.id = b.id AND j.batch_id IS NOT NULL OFFSET 0)
        ) next
    )
    SELECT EXISTS (SELECT FROM behind b WHERE b.id = ANY (ids))
$$;

-- A new job is created after all that it depends on, so only its batch can lead back to it: refuse what would wait for itself.
CREATE FUNCTION pgqueue.refuse_cycle(batch_id bigint, upstream bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF batch_id <> ALL (upstream) THEN
        IF NOT EXISTS (SELECT FROM pgqueue.dependencies d WHERE d.upstream_id = refuse_cycle.batch_id) THEN
            RETURN;  -- nobody waits for the batch yet; its row is locked by us
        END IF;
        PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue.cycles', 0));
        IF NOT pgqueue.waits_for(batch_id, upstream) THEN
            RETURN;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
        MESSAGE = format('depends_on: batch %s would wait for itself', batch_id);
END $$;

-- These have ended: free the jobs that waited for nothing else, and end those whose on_dead is cancel, and so on for those who
-- wait for them. Ids that nobody waits for, and those that have not ended, are passed over. An upstream that is in no table
-- (purged, pruned) can't be retried: it ends those that hold, too.
-- Locks: the batches of those that are to end by id, all followers by id, then the edges; a round per batch that is completed.
CREATE FUNCTION pgqueue.resolve(ended bigint[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    well bigint[];
    badly bigint[];
    gone bigint[];  -- of those, the ones in no table
    failed bigint[];
    doomed bigint[];
    reasons bigint[];
    freed bigint[];
    freed_by integer[];
    near bigint[];
    held bigint[];
    queue_name text;
BEGIN
    LOOP
        ended := ARRAY(SELECT u.id FROM unnest(ended) u(id)
                       CROSS JOIN LATERAL (SELECT FROM pgqueue.dependencies d WHERE d.upstream_id = u.id LIMIT 1) has);
        EXIT WHEN ended = '{}';
        SELECT coalesce(array_agg(o.id) FILTER (WHERE o.state = 'completed'), '{}'),
               coalesce(array_agg(o.id) FILTER (WHERE o.state <> 'completed'), '{}'),
               coalesce(array_agg(o.id) FILTER (WHERE o.state = 'gone'), '{}')
        INTO well, badly, gone
        FROM (SELECT u.id, CASE WHEN b.id IS NULL THEN coalesce(h.state::text, 'gone')
                                WHEN b.dead + b.cancelled > 0 THEN 'dead' ELSE 'completed' END AS state
              FROM unnest(ended) u(id)
              LEFT JOIN (SELECT x.id, x.state FROM pgqueue.history x WHERE x.id = ANY (ended)) h ON h.id = u.id
              LEFT JOIN (SELECT x.* FROM pgqueue.batches x WHERE x.id = ANY (ended)) b ON b.id = u.id
              LEFT JOIN (SELECT x.id FROM pgqueue.jobs x WHERE x.id = ANY (ended)) j ON j.id = u.id
              WHERE j.id IS NULL AND (b.id IS NULL OR b.completed + b.dead + b.cancelled >= b.total)) o;

        -- Who is concerned, and locks on them; again, until the locks have brought nobody new.
        held := '{}';
        LOOP
            WITH RECURSIVE fallen AS (
                SELECT d.job_id AS id, d.upstream_id FROM pgqueue.dependencies d
                WHERE d.upstream_id = ANY (badly) AND (d.on_dead = 'cancel' OR (d.on_dead = 'hold' AND d.upstream_id = ANY (gone)))
                UNION
                SELECT next.job_id, f.id FROM (SELECT DISTINCT x.id FROM fallen x) f CROSS JOIN LATERAL (
                    SELECT d.job_id FROM pgqueue.dependencies d WHERE d.upstream_id = f.id AND d.on_dead = 'cancel' OFFSET 0) next
            ), once AS (
                SELECT f.id, min(f.upstream_id) AS reason FROM fallen f GROUP BY f.id
            )
            SELECT coalesce(array_agg(o.id ORDER BY o.id), '{}'), coalesce(array_agg(o.reason ORDER BY o.id), '{}')
            INTO doomed, reasons FROM once o;
            failed := badly || doomed;
            near := ARRAY(
                SELECT n.id FROM (
                    SELECT d.job_id AS id FROM pgqueue.dependencies d
                    WHERE d.upstream_id = ANY (well || failed) AND (d.on_dead = 'continue' OR d.upstream_id = ANY (well))
                    UNION SELECT u FROM unnest(doomed) u) n
                EXCEPT SELECT u FROM unnest(held) u ORDER BY 1);
            EXIT WHEN near = '{}';
            IF doomed <> '{}' THEN
                PERFORM FROM pgqueue.batches b
                WHERE b.id = ANY (ARRAY(SELECT DISTINCT j.batch_id FROM pgqueue.jobs j WHERE j.id = ANY (doomed) AND j.batch_id IS NOT NULL))
                ORDER BY b.id FOR NO KEY UPDATE;
            END IF;
            PERFORM FROM pgqueue.jobs j WHERE j.id = ANY (near) ORDER BY j.id FOR UPDATE;
            held := held || near;
        END LOOP;

        WITH met AS (
            DELETE FROM pgqueue.dependencies d
            WHERE d.upstream_id = ANY (well || failed) AND (d.on_dead = 'continue' OR d.upstream_id = ANY (well))
            RETURNING d.job_id
        )
        SELECT coalesce(array_agg(m.job_id ORDER BY m.job_id), '{}'), coalesce(array_agg(m.n ORDER BY m.job_id), '{}')
        INTO freed, freed_by
        FROM (SELECT met.job_id, count(*)::integer AS n FROM met GROUP BY met.job_id) m;
        FOR queue_name IN
            WITH moved AS (
                UPDATE pgqueue.jobs j SET pending = nullif(j.pending - f.n, 0),
                    state = CASE WHEN j.pending <= f.n THEN 'available' ELSE 'blocked' END::pgqueue.job_state,
                    run_at = CASE WHEN j.pending <= f.n THEN greatest(j.due_at, now()) ELSE 'infinity' END,
                    due_at = CASE WHEN j.pending <= f.n THEN NULL ELSE j.due_at END
                FROM unnest(freed, freed_by) f(id, n)
                WHERE j.id = ANY (freed) AND j.id = f.id AND j.state = 'blocked'
                RETURNING j.queue, j.state, j.run_at
            )
            SELECT DISTINCT m.queue FROM moved m WHERE m.state = 'available' AND m.run_at <= now() + interval '1 minute'
        LOOP
            PERFORM pgqueue.ring(queue_name);
        END LOOP;

        EXIT WHEN doomed = '{}';
        DELETE FROM pgqueue.dependencies d WHERE d.job_id = ANY (doomed);
        WITH removed AS (
            DELETE FROM pgqueue.jobs j USING unnest(doomed, reasons) r(id, upstream_id)
            WHERE j.id = ANY (doomed) AND j.id = r.id AND j.state = 'blocked'
            RETURNING j.*, r.upstream_id
        ), landed AS (
            INSERT INTO pgqueue.history AS h (id, run_at, created_at, state, priority, attempt, max_attempts, queue, task, payload, timeout,
                unique_key, progress, errors, meta, group_key, batch_id, depends_on)
            SELECT g.id, coalesce(g.due_at, g.created_at), g.created_at, 'cancelled', g.priority, g.attempt, g.max_attempts, g.queue, g.task,
                g.payload, g.timeout, g.unique_key, g.progress,
                coalesce(g.errors, '[]') || jsonb_build_object('attempt', g.attempt, 'type', 'UpstreamFailed',
                    'at', now(), 'message', format('%s %s, on which it depends, did not complete',
                        CASE WHEN EXISTS (SELECT FROM pgqueue.batches b WHERE b.id = g.upstream_id) THEN 'batch' ELSE 'job' END, g.upstream_id)),
                g.meta, g.group_key, g.batch_id, g.depends_on
            FROM removed g
            RETURNING h.id
        )
        SELECT coalesce(array_agg(l.id), '{}') INTO doomed FROM landed l;
        ended := pgqueue.count_ended(doomed);
    END LOOP;
END $$;

-- Count jobs that have come into history in this transaction in their batches; answers the batches that are now complete.
CREATE FUNCTION pgqueue.count_ended(ended bigint[]) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    complete bigint[];
BEGIN
    IF ended = '{}' THEN
        RETURN ended;
    END IF;
    WITH n AS MATERIALIZED (
        SELECT h.batch_id, count(*) FILTER (WHERE h.state = 'completed') AS completed, count(*) FILTER (WHERE h.state = 'dead') AS dead,
            count(*) FILTER (WHERE h.state = 'cancelled') AS cancelled
        FROM pgqueue.history h WHERE h.id = ANY (ended) AND h.finished_at = now() AND h.batch_id IS NOT NULL
        GROUP BY h.batch_id
    ), locked AS MATERIALIZED (
        SELECT b.id FROM pgqueue.batches b WHERE b.id = ANY (ARRAY(SELECT n.batch_id FROM n)) ORDER BY b.id FOR NO KEY UPDATE
    ), counted AS (
        UPDATE pgqueue.batches b SET completed = b.completed + n.completed, dead = b.dead + n.dead, cancelled = b.cancelled + n.cancelled,
            finished_at = CASE WHEN b.completed + b.dead + b.cancelled + n.completed + n.dead + n.cancelled >= b.total THEN now() END
        FROM n WHERE b.id = ANY (ARRAY(SELECT l.id FROM locked l)) AND b.id = n.batch_id
        RETURNING b.id, b.finished_at
    )
    SELECT coalesce(array_agg(c.id), '{}') INTO complete FROM counted c WHERE c.finished_at IS NOT NULL;
    RETURN complete;
END $$;

-- Jobs with followers or a batch have come into history in this transaction: count them, and tell who waited. Answers
-- nothing, as rows, so that a statement can name it in FROM.
-- An older snapshot would not see who began to wait since it was taken, and nobody would wake them.
CREATE FUNCTION pgqueue.settle(ended bigint[]) RETURNS SETOF bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF ended <> '{}' AND current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'jobs that others wait for, or that belong to a batch, can be ended under READ COMMITTED only';
    END IF;
    PERFORM pgqueue.resolve(ended || pgqueue.count_ended(ended));
END $$;

-- The ids of a job (or a batch), of all that it depends on and of all that depend on it, directly or not, at most 2,000. A batch
-- that something depends on stands for its jobs. OFFSET 0 keeps each step a lookup by index; the planner's guess at
-- what comes of it is far too high, so that a server with JIT would compile for seconds.
CREATE FUNCTION pgqueue.related(job_id bigint) RETURNS SETOF bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET jit = off AS $$
    WITH RECURSIVE known AS (
        SELECT job_id AS id
        UNION
        SELECT near.id
        FROM known k LEFT JOIN LATERAL (
            SELECT a.depends_on, a.batch_id FROM pgqueue.all_jobs a WHERE a.id = k.id OFFSET 0
        ) me ON true
        CROSS JOIN LATERAL (
            SELECT u.id FROM unnest(me.depends_on) AS u(id)
            UNION ALL (SELECT f.id FROM pgqueue.all_jobs f WHERE f.depends_on @> ARRAY[k.id] OFFSET 0)
            UNION ALL (SELECT m.id FROM pgqueue.all_jobs m WHERE m.batch_id = k.id OFFSET 0)
            UNION ALL (SELECT f.id FROM pgqueue.all_jobs f WHERE me.batch_id IS NOT NULL AND f.depends_on @> ARRAY[me.batch_id] OFFSET 0)
        ) near
    )
    SELECT k.id FROM known k LIMIT 2000
$$;

-- Cancel every live job of a batch; answers how many ended at once (running ones are asked).
CREATE FUNCTION pgqueue.cancel_batch(batch_id bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    gone bigint[];
    asked bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM pgqueue.batches b WHERE b.id = cancel_batch.batch_id) THEN
        RETURN NULL;
    END IF;
    -- Locks as a finish takes them: what may run, the batch, what is blocked.
    PERFORM FROM pgqueue.jobs j WHERE j.batch_id = cancel_batch.batch_id AND j.state <> 'blocked' ORDER BY j.id FOR UPDATE;
    PERFORM FROM pgqueue.batches b WHERE b.id = cancel_batch.batch_id FOR NO KEY UPDATE;
    PERFORM FROM pgqueue.jobs j WHERE j.batch_id = cancel_batch.batch_id AND j.state = 'blocked' ORDER BY j.id FOR UPDATE;
    WITH waiting AS (
        DELETE FROM pgqueue.jobs j WHERE j.batch_id = cancel_batch.batch_id AND j.state <> 'running' RETURNING j.*
    ), landed AS (
        INSERT INTO pgqueue.history AS h (id, run_at, created_at, started_at, state, priority, attempt, max_attempts, queue, task, payload,
            timeout, unique_key, worker, progress, errors, meta, group_key, batch_id, depends_on)
        SELECT w.id, coalesce(w.due_at, w.run_at), w.created_at, w.started_at, 'cancelled', w.priority, w.attempt, w.max_attempts, w.queue,
            w.task, w.payload, w.timeout, w.unique_key, w.worker, w.progress, w.errors, w.meta, w.group_key, w.batch_id, w.depends_on
        FROM waiting w
        RETURNING h.id
    )
    SELECT coalesce(array_agg(l.id), '{}') INTO gone FROM landed l;
    DELETE FROM pgqueue.dependencies d WHERE d.job_id = ANY (gone);
    PERFORM pgqueue.settle(gone);
    FOR asked IN UPDATE pgqueue.jobs j SET cancel_requested = true
                 WHERE j.batch_id = cancel_batch.batch_id AND j.state = 'running' AND NOT j.cancel_requested RETURNING j.id LOOP
        IF pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify('pgqueue.cancel', asked::text);
        END IF;
    END LOOP;
    RETURN cardinality(gone);
END $$;
