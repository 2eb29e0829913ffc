-- Keys and limits: FIFO and fairness per group_key, limits of concurrency and rate, ageing. A queue that uses none of
-- them is served by claim.sql alone and pays nothing.

-- What a token bucket holds at a moment: it held `tokens` at `filled_at`, fills at `rate`, and never holds more than `burst`.
CREATE FUNCTION pgqueue.tokens_now(
    tokens float8, filled_at timestamptz, rate float8, burst integer, moment timestamptz DEFAULT clock_timestamp()
) RETURNS float8
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT least(burst, tokens + greatest(0, extract(epoch FROM moment - filled_at)::float8) * rate)
$$;

-- Change a queue's limits; a key that is not given stays as it is, null takes the limit away.
--   max_running: jobs of the queue running at once, on all workers. per_key: the same per group_key (1: FIFO, 0: any).
--   rate, burst: starts per second, and how many at once after a pause (default: one second's worth, at least 1);
--   key_rate, key_burst: the same per group_key. ageing: this much waiting is worth one step of priority.
CREATE FUNCTION pgqueue.limit_queue(queue text, limits jsonb) RETURNS jsonb
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    wrong text;
    was pgqueue.queues;
    has pgqueue.queues;
BEGIN
    IF (char_length(queue) BETWEEN 1 AND 128) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'queue must have 1 to 128 characters';
    END IF;
    IF jsonb_typeof(limits) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'limits must be a JSON object';
    END IF;
    SELECT k INTO wrong FROM jsonb_object_keys(limits) k
    WHERE k NOT IN ('max_running', 'per_key', 'rate', 'burst', 'key_rate', 'key_burst', 'ageing') LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('%L is not a limit', wrong),
            HINT = 'There are max_running, per_key, rate, burst, key_rate, key_burst and ageing.';
    END IF;
    INSERT INTO pgqueue.queues AS q (name) VALUES (queue) ON CONFLICT (name) DO NOTHING;
    SELECT q.* INTO was FROM pgqueue.queues q WHERE q.name = queue FOR UPDATE;
    has := jsonb_populate_record(was, limits);
    BEGIN
        UPDATE pgqueue.queues q SET max_running = has.max_running, per_key = coalesce(has.per_key, 1), rate = has.rate, burst = has.burst,
            key_rate = has.key_rate, key_burst = has.key_burst, ageing = has.ageing,
            limited_at = CASE WHEN was.limited THEN q.limited_at ELSE clock_timestamp() END, updated_at = now()
        WHERE q.name = queue
        RETURNING q.* INTO has;
    EXCEPTION WHEN check_violation THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a limit is out of range: max_running and per_key from 0, burst and key_burst from 1, rates 1e-9 to 1e9, ageing positive';
    END;
    PERFORM pgqueue.ring(queue);
    RETURN to_jsonb(has) - ARRAY['name', 'paused', 'limited', 'limited_at', 'updated_at'];
END $$;

-- Claim from a queue with keys or limits. One claim at a time per queue: each holds the queue's lock to its commit, and
-- every statement after the lock sees what the one before it has committed; that is what makes a limit exact.
--   tasks: NULL for all; most: at most so many; token, lease, worker: of the lease; mark_ats, mark_ids: per priority, from
--   0: where the lanes begin (see claim.sql); hints: keys to be looked at even when there are too many to look at all.
-- Index: jobs_group and jobs_group_next for the lines, jobs_group_due, jobs_claim for the lanes, jobs_pkey for what runs.
-- Locks: the queue's, waited for a quarter of a second; then jobs, SKIP LOCKED. No other: nobody's open transaction stops it.
-- Answers the columns of claim.sql and the group_key. Large payloads are NULL, to be asked for when the lock is free again:
-- a worker that reads them slowly, or not at all, must not hold up the others.
CREATE FUNCTION pgqueue.claim_managed(
    queue text, tasks text[], most integer, token bigint, lease interval, worker text, mark_ats timestamptz[], mark_ids bigint[],
    hints text[] DEFAULT NULL
) RETURNS TABLE (
    priority smallint, run_at timestamptz, id bigint, queue_name text, task text, payload text, attempt smallint, max_attempts smallint,
    timeout float8, meta text, suspect boolean, group_key text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '250ms' AS $$
#variable_conflict use_column
DECLARE
    q pgqueue.queues;
    bucket pgqueue.buckets;
    was pgqueue.buckets;
    moment timestamptz;
    held bigint[];
    running bigint := 0;
    busy jsonb := '{}';  -- how many run of each key
    room integer := most;
    budget integer := 200 + most;
    picked record;
    n integer;
    lanes bigint[] := '{}';
    lines bigint[] := '{}';
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'a queue with keys or limits is claimed under READ COMMITTED only';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue.claim ' || claim_managed.queue, 0));
    moment := clock_timestamp();  -- not now(): we may have waited
    SELECT x.* INTO q FROM pgqueue.queues x WHERE x.name = claim_managed.queue;
    IF NOT FOUND THEN
        q.name := claim_managed.queue; q.per_key := 1; q.limited := false; q.paused := false;
    END IF;
    IF q.paused THEN
        RETURN;
    END IF;
    SELECT b.* INTO bucket FROM pgqueue.buckets b WHERE b.queue = q.name AND b.group_key = '';
    IF NOT FOUND THEN
        bucket.queue := q.name; bucket.group_key := ''; bucket.after_key := '';
        bucket.tokens := 0; bucket.filled_at := '-infinity';
    END IF;
    was := bucket;

    -- What runs: by the leases of such claims, and by those from before there were limits.
    IF q.limited AND (bucket.limited_since IS NULL OR bucket.limited_since < q.limited_at) THEN
        bucket.limited_since := moment;
    END IF;
    IF q.max_running IS NOT NULL OR q.per_key > 0 THEN
        held := ARRAY(
            SELECT unnest(l.job_ids) FROM pgqueue.leases l
            WHERE l.queue = q.name OR (q.max_running IS NOT NULL AND l.queue IS NULL AND l.claimed_at < bucket.limited_since));
        SELECT coalesce(sum(k.n), 0), coalesce(jsonb_object_agg(k.group_key, k.n) FILTER (WHERE k.group_key IS NOT NULL), '{}')
        INTO running, busy
        FROM (SELECT j.group_key, count(*) AS n FROM pgqueue.jobs j
              WHERE j.id = ANY (held) AND j.state = 'running' AND j.queue = q.name GROUP BY j.group_key) k;
    END IF;
    room := least(room, q.max_running - running);
    IF q.rate IS NOT NULL THEN
        q.burst := coalesce(q.burst, greatest(1, ceil(q.rate)));
        bucket.tokens := CASE WHEN was.filled_at = '-infinity' THEN q.burst
                              ELSE pgqueue.tokens_now(bucket.tokens, bucket.filled_at, q.rate, q.burst, moment) END;
        room := least(room, floor(bucket.tokens)::integer);
    END IF;
    IF room <= 0 THEN
        RETURN;
    END IF;
    q.key_burst := coalesce(q.key_burst, greatest(1, ceil(q.key_rate)));

    -- Lines get half of the room, lanes the other, and each what the other leaves. A single place goes by chance.
    IF bucket.barren_at > moment - interval '100 ms' AND bucket.barren_at <= moment THEN
        budget := 0;  -- very many lines, and none to be started: they are looked through little by little
    END IF;
    SELECT p.* INTO picked FROM pgqueue.pick_lines(q, tasks, room, budget, busy, bucket.after_key, hints, moment) p;
    n := cardinality(picked.ids);
    IF q.limited THEN
        lanes := pgqueue.pick_lanes(q, tasks, greatest(room - n, room / 2 + room % 2 * (token % 2)::integer), mark_ats, mark_ids, moment);
        room := room - cardinality(lanes);
    END IF;
    IF n > 0 AND room > 0 THEN
        lines := ARRAY(
            SELECT j.id FROM pgqueue.jobs j
            WHERE j.id = ANY (picked.ids[:room]) AND j.state = 'available' AND j.run_at <= moment AND j.queue = q.name
            ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED);
    END IF;

    -- Where the next round begins. Nothing is written while every line is seen and none has to wait for its turn.
    IF n > room THEN
        bucket.after_key := coalesce(picked.keys[least(room, picked.turns)], bucket.after_key);
    ELSIF NOT picked.complete OR cardinality(lines) < n THEN
        bucket.after_key := picked.last_key;
    END IF;
    IF budget > 0 THEN
        bucket.barren_at := CASE WHEN n = 0 AND NOT picked.complete THEN moment END;
    END IF;
    IF q.rate IS NOT NULL AND lanes || lines <> '{}' THEN
        bucket.tokens := bucket.tokens - cardinality(lanes) - cardinality(lines);
        bucket.filled_at := moment;
    END IF;
    IF (bucket.after_key, bucket.barren_at, bucket.limited_since, bucket.filled_at)
       IS DISTINCT FROM (was.after_key, was.barren_at, was.limited_since, was.filled_at) THEN
        bucket.filled_at := CASE WHEN q.rate IS NOT NULL THEN moment ELSE bucket.filled_at END;
        INSERT INTO pgqueue.buckets SELECT bucket.*
        ON CONFLICT ON CONSTRAINT buckets_pkey DO UPDATE SET tokens = excluded.tokens, filled_at = excluded.filled_at,
            after_key = excluded.after_key, barren_at = excluded.barren_at, limited_since = excluded.limited_since;
    END IF;

    IF lanes || lines = '{}' THEN
        RETURN;
    END IF;
    IF q.key_rate IS NOT NULL AND lines <> '{}' THEN
        INSERT INTO pgqueue.buckets AS b (queue, group_key, tokens, filled_at)
        SELECT q.name, j.group_key, q.key_burst - count(*), moment
        FROM pgqueue.jobs j WHERE j.id = ANY (lines) GROUP BY j.group_key ORDER BY j.group_key
        ON CONFLICT ON CONSTRAINT buckets_pkey DO UPDATE SET filled_at = moment,
            tokens = pgqueue.tokens_now(b.tokens, b.filled_at, q.key_rate, q.key_burst, moment) - (q.key_burst - excluded.tokens);
    END IF;
    INSERT INTO pgqueue.leases (token, lease_until, claimed_at, worker, queue, job_ids)
    VALUES (claim_managed.token, moment + lease, moment, claim_managed.worker, q.name, ARRAY(SELECT t FROM unnest(lanes || lines) t ORDER BY t));
    RETURN QUERY
        WITH started AS (
            UPDATE pgqueue.jobs j
            SET state = 'running', attempt = j.attempt + 1, lease_token = claim_managed.token, lease_until = moment + lease,
                worker = claim_managed.worker, started_at = moment, progress = NULL
            WHERE j.id = ANY (lanes || lines)
            RETURNING j.priority, j.run_at, j.id, j.queue, j.task, j.payload::text AS body, j.attempt, j.max_attempts,
                extract(epoch FROM j.timeout)::float8 AS seconds, j.meta::text,
                j.errors -> -1 ->> 'type' = 'HandlerCrashedError'
                    OR (j.errors -> -1 ->> 'type' = 'LeaseExpired'
                        AND (j.errors -> -2 ->> 'type' = 'LeaseExpired' OR j.attempt = j.max_attempts)) AS suspect, j.group_key
        )
        SELECT s.priority::smallint, s.run_at, s.id, s.queue, s.task, CASE WHEN sum(octet_length(s.body)) OVER () <= 65536 THEN s.body END,
            s.attempt::smallint, s.max_attempts::smallint, s.seconds, s.meta, s.suspect, s.group_key
        FROM started s;
END $$;

-- The due jobs of a queue that have no group_key, in the order of their priority, which rises as they wait if the queue
-- says so; locked.
CREATE FUNCTION pgqueue.pick_lanes(
    q pgqueue.queues, tasks text[], most integer, mark_ats timestamptz[], mark_ids bigint[], moment timestamptz
) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ids bigint[];
BEGIN
    IF q.ageing IS NULL THEN
        WITH pick AS MATERIALIZED (
            SELECT due.id FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
                SELECT j.id FROM pgqueue.jobs j
                WHERE j.state = 'available' AND j.queue = q.name AND j.priority = lane.priority AND j.group_key IS NULL
                  AND (j.run_at, j.id) > (coalesce(mark_ats[lane.priority + 1], '-infinity'), mark_ids[lane.priority + 1])
                  AND j.run_at <= moment AND (tasks IS NULL OR j.task = ANY (tasks))
                ORDER BY j.run_at, j.id LIMIT most FOR NO KEY UPDATE SKIP LOCKED) due
            LIMIT most
        )
        SELECT array_agg(p.id) INTO ids FROM pick p;
    ELSE
        WITH pick AS MATERIALIZED (
            SELECT due.* FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
                SELECT j.id, j.run_at,
                    j.priority - floor(extract(epoch FROM moment - j.run_at) / extract(epoch FROM q.ageing)) AS rank
                FROM pgqueue.jobs j
                WHERE j.state = 'available' AND j.queue = q.name AND j.priority = lane.priority AND j.group_key IS NULL
                  AND (j.run_at, j.id) > (coalesce(mark_ats[lane.priority + 1], '-infinity'), mark_ids[lane.priority + 1])
                  AND j.run_at <= moment AND (tasks IS NULL OR j.task = ANY (tasks))
                ORDER BY j.run_at, j.id LIMIT most FOR NO KEY UPDATE SKIP LOCKED) due
        ), first AS (
            SELECT p.id FROM pick p ORDER BY p.rank, p.run_at, p.id LIMIT most
        )
        SELECT array_agg(f.id) INTO ids FROM first f;
    END IF;
    RETURN coalesce(ids, '{}');
END $$;

-- Of the lines of a queue, which jobs may start now: from each key what per_key, its bucket and a fair share of `room`
-- allow, beginning behind `after_key` and going round once.
-- At most `budget` keys are looked at. Where there are more, the hints are looked at as well, and what became due lately:
-- so very many lines that can't start (their heads wait for a retry) do not hide the others, until their turn comes.
-- Answers ids and their keys, in turn, the first `turns` of them from the round; last_key: the last one looked at;
-- complete: there is no other key.
CREATE FUNCTION pgqueue.pick_lines(
    q pgqueue.queues, tasks text[], room integer, budget integer, busy jsonb, after_key text, hints text[], moment timestamptz,
    OUT ids bigint[], OUT keys text[], OUT turns integer, OUT last_key text, OUT complete boolean
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    lines text[];
BEGIN
    WITH RECURSIVE line AS (  -- the head of each key, one probe each
        SELECT 1 AS nth, false AS again, (
            SELECT j FROM pgqueue.jobs j
            WHERE j.queue = q.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.group_key > after_key
            ORDER BY j.group_key, coalesce(j.place, j.id), j.id LIMIT 1) AS head
        WHERE budget > 0
        UNION ALL
        SELECT l.nth + 1, l.again OR (l.head).group_key IS NULL, (
            SELECT j FROM pgqueue.jobs j
            WHERE j.queue = q.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.group_key > coalesce((l.head).group_key, '')
            ORDER BY j.group_key, coalesce(j.place, j.id), j.id LIMIT 1)
        FROM line l
        WHERE l.nth < budget AND NOT (l.again AND ((l.head).group_key IS NULL OR (l.head).group_key > after_key))
    ), chosen AS MATERIALIZED (
        SELECT (l.head).group_key AS name FROM line l
        WHERE (NOT l.again OR (l.head).group_key <= after_key)
          AND (q.per_key <> 1 OR ((l.head).state = 'available' AND (l.head).run_at <= moment))
          AND EXISTS (SELECT FROM pgqueue.starters(q, tasks, (l.head).group_key, busy, moment, 1))
        LIMIT room
    ), found AS MATERIALIZED (
        SELECT coalesce(array_agg(c.name), '{}') AS names FROM chosen c
    )
    SELECT f.names, CASE WHEN cardinality(f.names) >= room THEN f.names[room] ELSE l.name END, l.again AND coalesce(l.name > after_key, true)
    INTO lines, last_key, complete
    FROM found f LEFT JOIN LATERAL (
        SELECT x.again, (x.head).group_key AS name FROM line x WHERE cardinality(f.names) < room ORDER BY x.nth DESC LIMIT 1) l ON true;
    last_key := coalesce(last_key, after_key);
    complete := coalesce(complete, false);

    turns := cardinality(lines);
    IF turns < room AND NOT complete THEN
        lines := lines || ARRAY(
            SELECT late.name
            FROM (SELECT h AS name FROM unnest(hints) h
                  UNION
                  SELECT due.group_key FROM (
                      SELECT j.group_key FROM pgqueue.jobs j
                      WHERE j.queue = q.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.state = 'available'
                        AND j.run_at <= moment AND j.run_at > moment - interval '10 seconds'
                      ORDER BY j.run_at DESC, j.id DESC LIMIT 500) due) late
            WHERE late.name <> ALL (lines) AND EXISTS (SELECT FROM pgqueue.starters(q, tasks, late.name, busy, moment, 1))
            LIMIT room - turns);
    END IF;
    IF lines = '{}' THEN
        ids := '{}';
        RETURN;
    END IF;
    SELECT coalesce(array_agg(one.id ORDER BY one.nth, one.turn), '{}'), array_agg(one.name ORDER BY one.nth, one.turn) INTO ids, keys
    FROM (
        SELECT s.id, s.nth, key.turn, key.name
        FROM unnest(lines) WITH ORDINALITY AS key(name, turn)
        CROSS JOIN LATERAL pgqueue.starters(q, tasks, key.name, busy, moment, least(room, 2 * room / cardinality(lines) + 10)) s
        ORDER BY s.nth, key.turn LIMIT room) one;
END $$;

-- How many jobs of a key its rate lets start now.
CREATE FUNCTION pgqueue.key_tokens(q pgqueue.queues, key text, moment timestamptz) RETURNS integer
LANGUAGE sql STABLE AS $$
    SELECT floor(coalesce(
        (SELECT pgqueue.tokens_now(b.tokens, b.filled_at, q.key_rate, q.key_burst, moment) FROM pgqueue.buckets b
         WHERE b.queue = q.name AND b.group_key = key), q.key_burst))::integer
$$;

-- The jobs of one key that may start now, at most so many. FIFO (per_key = 1): the head of the line, if it is due and
-- nothing of the line runs, and nobody else; one that waits (for its retry, or for a worker that knows its task) holds its
-- key. Otherwise those that are due longest. (The planner puts its body where it is called; so it must stay one SELECT.)
CREATE FUNCTION pgqueue.starters(
    q pgqueue.queues, tasks text[], key text, busy jsonb, moment timestamptz, most integer
) RETURNS TABLE (id bigint, nth bigint)
LANGUAGE sql STABLE AS $$
    SELECT head.id, 1::bigint
    FROM (SELECT j.id, j.state, j.run_at, j.task FROM pgqueue.jobs j
          WHERE j.queue = q.name AND j.group_key = key AND j.group_key IS NOT NULL AND j.run_at < 'infinity'
          ORDER BY coalesce(j.place, j.id), j.id LIMIT 1) head
    WHERE q.per_key = 1 AND NOT busy ? key AND head.state = 'available' AND head.run_at <= moment
      AND (tasks IS NULL OR head.task = ANY (tasks)) AND (q.key_rate IS NULL OR pgqueue.key_tokens(q, key, moment) >= 1)
    UNION ALL
    SELECT due.id, row_number() OVER (ORDER BY due.run_at, due.id)
    FROM (SELECT j.id, j.run_at FROM pgqueue.jobs j
          WHERE j.queue = q.name AND j.group_key = key AND j.group_key IS NOT NULL AND j.run_at < 'infinity'
            AND j.state = 'available' AND j.run_at <= moment AND (tasks IS NULL OR j.task = ANY (tasks))
          ORDER BY j.run_at, j.id
          LIMIT greatest(0, least(most, CASE WHEN q.per_key > 0 THEN q.per_key - coalesce((busy ->> key)::integer, 0) END,
                                  CASE WHEN q.key_rate IS NOT NULL THEN pgqueue.key_tokens(q, key, moment) END))) due
    WHERE q.per_key <> 1
$$;
