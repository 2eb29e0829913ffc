-- Batches and their counts, newest id first, a page at a time.
--
-- Parameters: unfinished: true for only those with jobs that have not ended; before: an id to go on from, NULL for the newest; limit.
-- Index: batches_pkey, backwards.
SELECT b.id, b.name, b.total, b.completed, b.dead, b.cancelled, b.created_at, b.finished_at
FROM pgqueue.batches b
WHERE (NOT %(unfinished)s::boolean OR b.completed + b.dead + b.cancelled < b.total)
  AND (%(before)s::bigint IS NULL OR b.id < %(before)s)
ORDER BY b.id DESC
LIMIT %(limit)s
