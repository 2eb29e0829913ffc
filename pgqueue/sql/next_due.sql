-- What an idle worker asks instead of claiming: is a job of these lanes due now; seconds until the next one is, or until it
-- may be started for another reason (the next token of a rate, the next look at very many lines), NULL when there is none:
-- it sleeps no longer; and which of the queues are to be served by claim_managed.sql.
--
-- Parameters: queues, priorities, mark_ats, mark_ids: as in claim.sql; tasks: names, NULL for all.
-- Index: jobs_claim, two probes per lane; jobs_group_due, three per queue; buckets_pkey.
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
), lane AS MATERIALIZED (
    SELECT l.queue, l.priority, coalesce(to_timestamp(l.mark_at), '-infinity') AS mark_at, l.mark_id, settings.limited
    FROM unnest(%(queues)s::text[], %(priorities)s::smallint[], %(mark_ats)s::float8[], %(mark_ids)s::bigint[])
        AS l(queue, priority, mark_at, mark_id)
    LEFT JOIN LATERAL (SELECT q.paused, q.limited FROM pgqueue.queues q WHERE q.name = l.queue LIMIT 1) settings ON true
    WHERE NOT coalesce(settings.paused, false)
), ready AS (
    SELECT FROM lane CROSS JOIN LATERAL (
        SELECT
        FROM pgqueue.jobs j
        WHERE j.state = 'available' AND j.queue = lane.queue AND j.priority = lane.priority AND j.group_key IS NULL
          AND (j.run_at, j.id) > (lane.mark_at, lane.mark_id) AND j.run_at <= now()
          AND (%(tasks)s::text[] IS NULL OR j.task = ANY (%(tasks)s::text[]))
        LIMIT 1
    ) due
    WHERE lane.limited IS NOT TRUE
    LIMIT 1
), soon AS (
    SELECT min(due.run_at) AS run_at
    FROM lane
    CROSS JOIN LATERAL (
        SELECT j.run_at
        FROM pgqueue.jobs j
        WHERE j.state = 'available' AND j.queue = lane.queue AND j.priority = lane.priority AND j.group_key IS NULL
          AND j.run_at > now() AND j.run_at < 'infinity'
          AND (%(tasks)s::text[] IS NULL OR j.task = ANY (%(tasks)s::text[]))
        ORDER BY j.run_at
        LIMIT 1
    ) due
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
SELECT EXISTS (SELECT FROM ready), extract(epoch FROM (SELECT min(s.run_at) FROM soon s) - clock_timestamp())::float8, ARRAY(SELECT m.name FROM managed m)
