-- Insert one job with any option: see the function pgqueue.submit. Answers (id, created).
--
-- Parameters: those of pgqueue.submit.
SELECT s.id, s.created FROM pgqueue.submit(%(task)s, %(payload)s::jsonb, %(queue)s, %(priority)s, %(delay)s::interval, %(run_at)s::timestamptz,
    %(max_attempts)s, %(timeout)s::interval, %(unique_key)s, %(meta)s::jsonb, %(group_key)s, %(unique_for)s::interval, %(on_conflict)s,
    %(depends_on)s::bigint[], %(on_dead)s) s
