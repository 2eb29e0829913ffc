-- Keep the partitions of history: see the function pgqueue.prune. Answers what it did, a line each.
--
-- Parameters: none.
SELECT p FROM pgqueue.prune() p
