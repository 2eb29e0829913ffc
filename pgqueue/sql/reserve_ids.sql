-- Draw ids for jobs that will come by COPY.
--
-- Parameters: count.
SELECT nextval('pgqueue.jobs_id_seq') FROM generate_series(1, %(count)s)
