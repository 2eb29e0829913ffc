-- How many jobs a verb for many would touch now; changes nothing.
--
-- Parameters: action: redrive, purge or purge_dead; queue, task: as of that verb, NULL for any; limit: count no further, NULL for all.
-- Index: jobs_unique_key for redrive. Else as the verb: it reads what the verb would change.
SELECT count(*) FROM (
    SELECT FROM pgqueue.history h
    WHERE h.state = 'dead' AND %(action)s::text IN ('redrive', 'purge_dead')
      AND (%(queue)s::text IS NULL OR h.queue = %(queue)s) AND (%(task)s::text IS NULL OR h.task = %(task)s)
      AND (%(action)s::text = 'purge_dead' OR h.unique_key IS NULL
           OR NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.unique_key = h.unique_key))
    UNION ALL
    SELECT FROM pgqueue.jobs j
    WHERE %(action)s::text = 'purge' AND j.queue = %(queue)s AND j.state IN ('available', 'blocked')
    LIMIT %(limit)s::bigint
) touched
