-- Which of these queues are to be served by claim_managed.sql: those with limits, and those that have jobs with a key.
--
-- Parameters: queues.
-- Index: queues_pkey; jobs_group_due, from its end: one probe per queue (EXISTS might become a join that reads them all).
SELECT n.name
FROM unnest(%(queues)s::text[]) AS n(name)
LEFT JOIN LATERAL (
    SELECT q.paused, q.limited FROM pgqueue.queues q WHERE q.name = n.name LIMIT 1
) settings ON true
WHERE NOT coalesce(settings.paused, false) AND (
    coalesce(settings.limited, false) OR (
        SELECT j.id FROM pgqueue.jobs j WHERE j.queue = n.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity'
        ORDER BY j.run_at DESC, j.id DESC LIMIT 1) IS NOT NULL)
