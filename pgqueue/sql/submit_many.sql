-- Insert many jobs, all or none: see the function pgqueue.submit_many. Answers (id, created) in the order given.
--
-- Parameters: jobs: a JSON array; batch_id: NULL for none.
SELECT s.id, s.created FROM pgqueue.submit_many(%(jobs)s::jsonb, %(batch_id)s::bigint) s
