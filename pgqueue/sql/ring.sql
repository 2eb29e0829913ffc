-- Wake an idle worker of each of these queues when this transaction commits.
--
-- Parameters: queues.
SELECT pgqueue.ring(q) FROM unnest(%(queues)s::text[]) q
