-- Enqueue many jobs through the public contract. Answers their ids in the order given.
--
-- Parameters: jobs: JSON text, an array of objects whose keys are the arguments of pgqueue.enqueue.
SELECT e FROM pgqueue.enqueue_many(%(jobs)s::jsonb) e
