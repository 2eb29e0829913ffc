-- Draw ids for jobs that will come by COPY, as one array: as rows they would take the client five times as long to read.
--
-- Parameters: count, at least 1.
SELECT array_agg(nextval('pgqueue.jobs_id_seq')) FROM generate_series(1, %(count)s)
