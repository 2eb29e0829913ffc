-- Forget a worker that stopped in order.
--
-- Parameters: name.
DELETE FROM pgqueue.workers w WHERE w.name = %(name)s
