-- Seconds until the next waiting job of these lanes is due, or until it may be started for another reason: the next token
-- of a rate, the next look at very many lines; NULL when there is none. An idle worker sleeps no longer. And which of the
-- queues are to be served by claim_managed.sql.
--
-- Parameters: queues, priorities: parallel arrays, one element per lane; tasks: names, NULL for all.
-- Index: jobs_claim, one probe per lane; jobs_group_due, three per queue; buckets_pkey.
-- LATERAL with LIMIT, and no EXISTS: each of them is one probe, whatever the planner thinks of joins.
WITH managed AS MATERIALIZED (
    SELECT n.name, settings.rate, settings.burst, settings.key_rate, bucket.tokens, bucket.filled_at, bucket.barren_at, keyed.last IS NOT NULL AS keyed
    FROM (SELECT DISTINCT l.queue AS name FROM unnest(%(queues)s::text[]) AS l(queue)) n
    LEFT JOIN LATERAL (
        SELECT q.paused, q.limited, q.rate, coalesce(q.burst, greatest(1, ceil(q.rate)))::integer AS burst, q.key_rate
        FROM pgqueue.queues q WHERE q.name = n.name LIMIT 1
    ) settings ON true
    LEFT JOIN LATERAL (
        SELECT b.tokens, b.filled_at, b.barren_at FROM pgqueue.buckets b WHERE b.queue = n.name AND b.group_key = '' LIMIT 1
    ) bucket ON true
    LEFT JOIN LATERAL (
        SELECT j.id AS last FROM pgqueue.jobs j WHERE j.queue = n.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity'
        ORDER BY j.run_at DESC, j.id DESC LIMIT 1
    ) keyed ON true
    WHERE NOT coalesce(settings.paused, false) AND (coalesce(settings.limited, false) OR keyed.last IS NOT NULL)
), soon AS (
    SELECT min(due.run_at) AS run_at
    FROM unnest(%(queues)s::text[], %(priorities)s::smallint[]) AS lane(queue, priority)
    CROSS JOIN LATERAL (
        SELECT j.run_at
        FROM pgqueue.jobs j
        WHERE j.state = 'available' AND j.queue = lane.queue AND j.priority = lane.priority AND j.group_key IS NULL
          AND j.run_at > now()
          AND (%(tasks)s::text[] IS NULL OR j.task = ANY (%(tasks)s::text[]))
        ORDER BY j.run_at
        LIMIT 1
    ) due
    WHERE NOT EXISTS (SELECT FROM pgqueue.queues q WHERE q.name = lane.queue AND q.paused)
    UNION ALL  -- of the lines: it need not be a head, so there is a pause between looks
    SELECT (SELECT greatest(j.run_at, clock_timestamp() + interval '20 ms') FROM pgqueue.jobs j
            WHERE j.state = 'available' AND j.queue = m.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.run_at > now()
            ORDER BY j.run_at LIMIT 1)
    FROM managed m WHERE m.keyed
    UNION ALL
    SELECT clock_timestamp() + greatest(0.005, least(3600, (1 - pgqueue.tokens_now(m.tokens, m.filled_at, m.rate, m.burst)) / m.rate)) * interval '1 second'
    FROM managed m WHERE pgqueue.tokens_now(m.tokens, m.filled_at, m.rate, m.burst) < 1
    UNION ALL  -- a key's rate: by the pace of its tokens, while anything of the lines is due
    SELECT clock_timestamp() + greatest(0.02, least(3600, 1 / m.key_rate)) * interval '1 second'
    FROM managed m WHERE m.keyed AND m.key_rate IS NOT NULL AND (
        SELECT j.id FROM pgqueue.jobs j WHERE j.state = 'available' AND j.queue = m.name AND j.group_key IS NOT NULL AND j.run_at <= now()
          AND j.run_at < 'infinity' ORDER BY j.run_at, j.id LIMIT 1) IS NOT NULL
    UNION ALL
    SELECT m.barren_at + interval '110 ms' FROM managed m WHERE m.barren_at IS NOT NULL
)
SELECT extract(epoch FROM (SELECT min(s.run_at) FROM soon s) - clock_timestamp())::float8, ARRAY(SELECT m.name FROM managed m)
