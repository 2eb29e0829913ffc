-- What PostgreSQL's statistics know of the hot table, who is alive, and since when the oldest transaction is open.
--
-- Parameters: none.
-- Index: none needed: catalogs, pg_stats, workers (a row each) and the sessions of the server. Reads no job.
-- Answers one row: live and dead rows of jobs; the most common queues and their shares; the shares of blocked jobs and of
--   run_at in the future; seconds since the oldest transaction began that keeps vacuum from removing rows (a vacuum does
--   not; other roles' are seen by members of pg_monitor only); workers alive, their slots, how many of those are busy.
SELECT CASE WHEN pg_stat_get_tuples_inserted(c.oid) > 0 THEN pg_stat_get_live_tuples(c.oid)::float8
        ELSE greatest(c.reltuples, 0)::float8 END,
    pg_stat_get_dead_tuples(c.oid),
    coalesce(q.most_common_vals::text::text[], '{}'), coalesce(q.most_common_freqs::float8[], '{}'),
    coalesce((SELECT v.freq FROM unnest(s.most_common_vals::text::text[], s.most_common_freqs::float8[]) AS v(state, freq)
              WHERE v.state = 'blocked'), 0),
    coalesce((SELECT avg((b.bound > now())::integer) FROM unnest(r.histogram_bounds::text::timestamptz[]) AS b(bound)), 0)::float8,
    (SELECT coalesce(extract(epoch FROM clock_timestamp() - min(held.since)), 0)::float8 FROM (
        SELECT a.xact_start AS since FROM pg_stat_activity a
        WHERE (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL) AND a.pid <> pg_backend_pid()
          AND (a.datname = current_database() OR a.datname IS NULL) AND a.backend_type <> 'autovacuum worker'
        UNION ALL
        SELECT p.prepared FROM pg_prepared_xacts p WHERE p.database = current_database()
    ) held),
    w.alive, w.slots, w.busy
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_stats q ON q.schemaname = n.nspname AND q.tablename = c.relname AND q.attname = 'queue'
LEFT JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = 'state'
LEFT JOIN pg_stats r ON r.schemaname = n.nspname AND r.tablename = c.relname AND r.attname = 'run_at'
CROSS JOIN (
    SELECT count(*) AS alive, coalesce(sum(a.slots), 0) AS slots, coalesce(sum(a.running), 0) AS busy
    FROM pgqueue.workers a WHERE a.heartbeat_at > now() - interval '30 seconds'
) w
WHERE c.oid = 'pgqueue.jobs'::regclass
