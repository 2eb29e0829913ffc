-- How many jobs history holds, by outcome and queue: from the statistics of its partitions, and counted where those say
-- that there are few.
--
-- Parameters: most: so many rows of an outcome are counted, or a tenth of that when there are more anyway.
-- Index: none: the first rows of the partitions, in any order. The hot table is not touched.
-- Answers rows (what, outcome, queue, jobs): 'total' and 'share' as PostgreSQL's statistics know them (a share is the part
--   of a queue that is among the most common ones of its partitions), 'sample' as counted, 'cut' where there may be more.
WITH leaf AS MATERIALIZED (
    SELECT CASE t.parentrelid
            WHEN 'pgqueue.history_completed'::regclass THEN 'completed'
            WHEN 'pgqueue.history_dead'::regclass THEN 'dead'
            ELSE 'cancelled'
        END AS state, c.relname, c.relnamespace,
        CASE WHEN pg_stat_get_tuples_inserted(c.oid) > 0 THEN pg_stat_get_live_tuples(c.oid)::float8
            ELSE greatest(c.reltuples, 0)::float8 END AS jobs
    FROM pg_partition_tree('pgqueue.history'::regclass) t JOIN pg_class c ON c.oid = t.relid
    WHERE t.isleaf
), total AS MATERIALIZED (
    SELECT l.state, sum(l.jobs) AS jobs,
        (CASE WHEN sum(l.jobs) > 2 * %(most)s::bigint THEN %(most)s::bigint / 10 ELSE %(most)s::bigint END) AS looks
    FROM leaf l GROUP BY l.state
), share AS (
    SELECT l.state, v.queue, sum(l.jobs * v.freq) AS jobs
    FROM leaf l
    JOIN pg_namespace n ON n.oid = l.relnamespace
    JOIN pg_stats s ON s.schemaname = n.nspname AND s.tablename = l.relname AND s.attname = 'queue'
    CROSS JOIN LATERAL unnest(s.most_common_vals::text::text[], s.most_common_freqs::float8[]) AS v(queue, freq)
    WHERE l.jobs > 0
    GROUP BY l.state, v.queue
), sample AS MATERIALIZED (
    SELECT 'completed' AS state, x.queue, count(*) AS jobs
    FROM (SELECT h.queue FROM pgqueue.history h WHERE h.state = 'completed'
          LIMIT (SELECT t.looks FROM total t WHERE t.state = 'completed')) x GROUP BY x.queue
    UNION ALL
    SELECT 'dead', x.queue, count(*)
    FROM (SELECT h.queue FROM pgqueue.history h WHERE h.state = 'dead'
          LIMIT (SELECT t.looks FROM total t WHERE t.state = 'dead')) x GROUP BY x.queue
    UNION ALL
    SELECT 'cancelled', x.queue, count(*)
    FROM (SELECT h.queue FROM pgqueue.history h WHERE h.state = 'cancelled'
          LIMIT (SELECT t.looks FROM total t WHERE t.state = 'cancelled')) x GROUP BY x.queue
)
SELECT 'total', t.state, NULL, t.jobs FROM total t
UNION ALL SELECT 'share', s.state, s.queue, s.jobs FROM share s
UNION ALL SELECT 'sample', x.state, x.queue, x.jobs::float8 FROM sample x
UNION ALL
SELECT 'cut', t.state, NULL, 0 FROM total t
WHERE (SELECT sum(x.jobs) FROM sample x WHERE x.state = t.state) >= t.looks
