-- The payloads of jobs that run under a lease: what claim_managed.sql left out because it is large.
--
-- Parameters: ids; token: of the lease.
-- Index: jobs_pkey.
SELECT j.id, j.payload::text FROM pgqueue.jobs j WHERE j.id = ANY (%(ids)s::bigint[]) AND j.lease_token = %(token)s::bigint
