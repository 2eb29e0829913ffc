-- Made from the catalog by tests/test_schema.py, which says how to write it again. Not a script to run.

CREATE SCHEMA pgqueue;
    GRANT U TO pgqueue_admin
    GRANT U TO pgqueue_producer
    GRANT U TO pgqueue_reader
    GRANT U TO pgqueue_worker

CREATE TYPE pgqueue.job_state AS ENUM ('available', 'blocked', 'running', 'completed', 'dead', 'cancelled');

CREATE DOMAIN pgqueue.attempts AS smallint CONSTRAINT attempts_are_counted CHECK ((VALUE >= 0));

CREATE DOMAIN pgqueue.max_attempts AS smallint CONSTRAINT max_attempts_is_positive CHECK ((VALUE >= 1));

CREATE DOMAIN pgqueue.priority AS smallint CONSTRAINT priority_is_0_to_9 CHECK (((VALUE >= 0) AND (VALUE <= 9)));

TABLE pgqueue.alembic_version
    version_num character varying(32) NOT NULL
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
    CREATE UNIQUE INDEX alembic_version_pkc ON pgqueue.alembic_version USING btree (version_num)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_producer
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.batches
    WITH (autovacuum_vacuum_cost_delay=0, autovacuum_vacuum_scale_factor=0.1, autovacuum_vacuum_threshold=500, fillfactor=50)
    id bigint NOT NULL
    name text
    total integer NOT NULL DEFAULT 0
    completed integer NOT NULL DEFAULT 0
    dead integer NOT NULL DEFAULT 0
    cancelled integer NOT NULL DEFAULT 0
    created_at timestamp with time zone NOT NULL DEFAULT now()
    finished_at timestamp with time zone
    CONSTRAINT batches_pkey PRIMARY KEY (id)
    CREATE UNIQUE INDEX batches_pkey ON pgqueue.batches USING btree (id)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.buckets
    WITH (autovacuum_vacuum_cost_delay=0, autovacuum_vacuum_scale_factor=0.1, autovacuum_vacuum_threshold=500, fillfactor=50)
    queue text NOT NULL
    group_key text NOT NULL
    tokens double precision NOT NULL DEFAULT 0
    filled_at timestamp with time zone NOT NULL DEFAULT now()
    after_key text NOT NULL DEFAULT ''::text
    barren_at timestamp with time zone
    limited_since timestamp with time zone
    CONSTRAINT buckets_pkey PRIMARY KEY (queue, group_key)
    CREATE UNIQUE INDEX buckets_pkey ON pgqueue.buckets USING btree (queue, group_key)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.dependencies
    upstream_id bigint NOT NULL
    job_id bigint NOT NULL
    on_dead text NOT NULL
    CONSTRAINT dependencies_on_dead CHECK ((on_dead = ANY (ARRAY['cancel'::text, 'continue'::text, 'hold'::text])))
    CONSTRAINT dependencies_pkey PRIMARY KEY (upstream_id, job_id)
    CREATE INDEX dependencies_job ON pgqueue.dependencies USING btree (job_id)
    CREATE UNIQUE INDEX dependencies_pkey ON pgqueue.dependencies USING btree (upstream_id, job_id)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history
    PARTITION BY LIST (state)
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    group_key text
    batch_id bigint
    depends_on bigint[]
    CREATE INDEX history_batch ON ONLY pgqueue.history USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    CREATE INDEX history_depends_on ON ONLY pgqueue.history USING gin (depends_on) WITH (fastupdate=off) WHERE (depends_on IS NOT NULL)
    GRANT ar TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT ar TO pgqueue_worker

TABLE pgqueue.history_cancelled
    PARTITION OF pgqueue.history FOR VALUES IN ('cancelled')
    PARTITION BY RANGE (finished_at)
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    group_key text
    batch_id bigint
    depends_on bigint[]
    CONSTRAINT history_cancelled_pkey PRIMARY KEY (id, finished_at)
    CREATE INDEX history_cancelled_batch_id_idx ON ONLY pgqueue.history_cancelled USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    CREATE INDEX history_cancelled_depends_on_idx ON ONLY pgqueue.history_cancelled USING gin (depends_on) WITH (fastupdate=off) WHERE (depends_on IS NOT NULL)
    CREATE UNIQUE INDEX history_cancelled_pkey ON ONLY pgqueue.history_cancelled USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_cancelled_default
    PARTITION OF pgqueue.history_cancelled DEFAULT
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    group_key text
    batch_id bigint
    depends_on bigint[]
    CONSTRAINT history_cancelled_default_pkey PRIMARY KEY (id, finished_at)
    CREATE INDEX history_cancelled_default_batch_id_idx ON pgqueue.history_cancelled_default USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    CREATE INDEX history_cancelled_default_depends_on_idx ON pgqueue.history_cancelled_default USING gin (depends_on) WITH (fastupdate=off) WHERE (depends_on IS NOT NULL)
    CREATE UNIQUE INDEX history_cancelled_default_pkey ON pgqueue.history_cancelled_default USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_completed
    PARTITION OF pgqueue.history FOR VALUES IN ('completed')
    PARTITION BY RANGE (finished_at)
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    group_key text
    batch_id bigint
    depends_on bigint[]
    CONSTRAINT history_completed_pkey PRIMARY KEY (id, finished_at)
    CREATE INDEX history_completed_batch_id_idx ON ONLY pgqueue.history_completed USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    CREATE INDEX history_completed_depends_on_idx ON ONLY pgqueue.history_completed USING gin (depends_on) WITH (fastupdate=off) WHERE (depends_on IS NOT NULL)
    CREATE UNIQUE INDEX history_completed_pkey ON ONLY pgqueue.history_completed USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_completed_default
    PARTITION OF pgqueue.history_completed DEFAULT
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    group_key text
    batch_id bigint
    depends_on bigint[]
    CONSTRAINT history_completed_default_pkey PRIMARY KEY (id, finished_at)
    CREATE INDEX history_completed_default_batch_id_idx ON pgqueue.history_completed_default USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    CREATE INDEX history_completed_default_depends_on_idx ON pgqueue.history_completed_default USING gin (depends_on) WITH (fastupdate=off) WHERE (depends_on IS NOT NULL)
    CREATE UNIQUE INDEX history_completed_default_pkey ON pgqueue.history_completed_default USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_dead
    PARTITION OF pgqueue.history FOR VALUES IN ('dead')
    PARTITION BY RANGE (finished_at)
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    group_key text
    batch_id bigint
    depends_on bigint[]
    CONSTRAINT history_dead_pkey PRIMARY KEY (id, finished_at)
    CREATE INDEX history_dead_batch_id_idx ON ONLY pgqueue.history_dead USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    CREATE INDEX history_dead_depends_on_idx ON ONLY pgqueue.history_dead USING gin (depends_on) WITH (fastupdate=off) WHERE (depends_on IS NOT NULL)
    CREATE UNIQUE INDEX history_dead_pkey ON ONLY pgqueue.history_dead USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.history_dead_default
    PARTITION OF pgqueue.history_dead DEFAULT
    id bigint NOT NULL
    run_at timestamp with time zone NOT NULL
    created_at timestamp with time zone NOT NULL
    started_at timestamp with time zone
    finished_at timestamp with time zone NOT NULL DEFAULT now()
    lease_token bigint
    state pgqueue.job_state NOT NULL
    priority smallint NOT NULL
    attempt smallint NOT NULL
    max_attempts smallint NOT NULL
    queue text NOT NULL
    task text NOT NULL
    payload jsonb NOT NULL
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    result jsonb
    group_key text
    batch_id bigint
    depends_on bigint[]
    CONSTRAINT history_dead_default_pkey PRIMARY KEY (id, finished_at)
    CREATE INDEX history_dead_default_batch_id_idx ON pgqueue.history_dead_default USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    CREATE INDEX history_dead_default_depends_on_idx ON pgqueue.history_dead_default USING gin (depends_on) WITH (fastupdate=off) WHERE (depends_on IS NOT NULL)
    CREATE UNIQUE INDEX history_dead_default_pkey ON pgqueue.history_dead_default USING btree (id, finished_at)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.jobs
    WITH (autovacuum_analyze_scale_factor=0.1, autovacuum_vacuum_cost_delay=0, autovacuum_vacuum_insert_scale_factor=0.2, autovacuum_vacuum_scale_factor=0.02, autovacuum_vacuum_threshold=2000, fillfactor=40)
    id bigint NOT NULL IDENTITY
    run_at timestamp with time zone NOT NULL DEFAULT now()
    created_at timestamp with time zone NOT NULL DEFAULT now()
    started_at timestamp with time zone
    lease_until timestamp with time zone
    lease_token bigint
    state pgqueue.job_state NOT NULL DEFAULT 'available'::pgqueue.job_state
    priority pgqueue.priority NOT NULL DEFAULT 5
    attempt pgqueue.attempts NOT NULL DEFAULT 0
    max_attempts pgqueue.max_attempts NOT NULL DEFAULT 10
    cancel_requested boolean NOT NULL DEFAULT false
    has_followers boolean NOT NULL DEFAULT false
    pending integer
    queue text NOT NULL DEFAULT 'default'::text
    task text NOT NULL
    payload jsonb NOT NULL DEFAULT '{}'::jsonb
    timeout interval
    unique_key text
    worker text
    progress jsonb
    errors jsonb
    meta jsonb
    group_key text
    place bigint
    due_at timestamp with time zone
    batch_id bigint
    depends_on bigint[]
    last_token bigint
    CONSTRAINT jobs_pkey PRIMARY KEY (id)
    CREATE INDEX jobs_batch ON pgqueue.jobs USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    CREATE INDEX jobs_claim ON pgqueue.jobs USING btree (queue, priority, run_at, id) WHERE (group_key IS NULL)
    CREATE INDEX jobs_depends_on ON pgqueue.jobs USING gin (depends_on) WITH (fastupdate=off) WHERE (depends_on IS NOT NULL)
    CREATE INDEX jobs_group ON pgqueue.jobs USING btree (queue, group_key, COALESCE(place, id), id) WHERE ((group_key IS NOT NULL) AND (run_at < 'infinity'::timestamp with time zone))
    CREATE INDEX jobs_group_due ON pgqueue.jobs USING btree (queue, run_at, id) WHERE (group_key IS NOT NULL)
    CREATE INDEX jobs_group_next ON pgqueue.jobs USING btree (queue, group_key, run_at, id) WHERE ((group_key IS NOT NULL) AND (run_at < 'infinity'::timestamp with time zone))
    CREATE UNIQUE INDEX jobs_pkey ON pgqueue.jobs USING btree (id)
    CREATE UNIQUE INDEX jobs_unique_key ON pgqueue.jobs USING btree (unique_key) WHERE (unique_key IS NOT NULL)
    GRANT arwd TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT arwd TO pgqueue_worker

SEQUENCE pgqueue.jobs_id_seq
    GRANT U TO pgqueue_admin
    GRANT U TO pgqueue_worker

TABLE pgqueue.leases
    WITH (autovacuum_vacuum_cost_delay=0, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=500, fillfactor=70)
    token bigint NOT NULL
    lease_until timestamp with time zone NOT NULL
    claimed_at timestamp with time zone NOT NULL DEFAULT now()
    worker text NOT NULL
    queue text
    job_ids bigint[] NOT NULL
    CONSTRAINT leases_pkey PRIMARY KEY (token)
    CREATE UNIQUE INDEX leases_pkey ON pgqueue.leases USING btree (token)
    GRANT arwd TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT arwd TO pgqueue_worker

TABLE pgqueue.queues
    name text NOT NULL
    paused boolean NOT NULL DEFAULT false
    max_running integer
    per_key integer NOT NULL DEFAULT 1
    rate double precision
    burst integer
    key_rate double precision
    key_burst integer
    ageing interval
    limited boolean DEFAULT ((max_running IS NOT NULL) OR (rate IS NOT NULL) OR (ageing IS NOT NULL))
    limited_at timestamp with time zone NOT NULL DEFAULT now()
    updated_at timestamp with time zone NOT NULL DEFAULT now()
    CONSTRAINT queues_limits_have_a_meaning CHECK (((max_running >= 0) AND (per_key >= 0) AND ((rate >= (0.000000001)::double precision) AND (rate <= ('1000000000'::numeric)::double precision)) AND (burst >= 1) AND ((key_rate >= (0.000000001)::double precision) AND (key_rate <= ('1000000000'::numeric)::double precision)) AND (key_burst >= 1) AND (ageing > '00:00:00'::interval)))
    CONSTRAINT queues_pkey PRIMARY KEY (name)
    CREATE UNIQUE INDEX queues_pkey ON pgqueue.queues USING btree (name)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.retention
    state pgqueue.job_state NOT NULL
    keep interval NOT NULL
    CONSTRAINT retention_is_of_an_outcome CHECK ((state = ANY (ARRAY['completed'::pgqueue.job_state, 'dead'::pgqueue.job_state, 'cancelled'::pgqueue.job_state])))
    CONSTRAINT retention_is_positive CHECK ((keep >= '00:00:00'::interval))
    CONSTRAINT retention_pkey PRIMARY KEY (state)
    CREATE UNIQUE INDEX retention_pkey ON pgqueue.retention USING btree (state)
    GRANT rw TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.schedules
    WITH (autovacuum_vacuum_cost_delay=0, autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=500, fillfactor=70)
    name text NOT NULL
    expression text NOT NULL
    time_zone text NOT NULL DEFAULT 'UTC'::text
    task text NOT NULL
    payload jsonb NOT NULL DEFAULT '{}'::jsonb
    queue text NOT NULL DEFAULT 'default'::text
    priority smallint NOT NULL DEFAULT 5
    max_attempts smallint NOT NULL DEFAULT 10
    timeout interval
    misfire text NOT NULL DEFAULT 'latest'::text
    grace interval NOT NULL DEFAULT '00:01:00'::interval
    overlap text NOT NULL DEFAULT 'allow'::text
    unique_key text
    group_key text
    paused boolean NOT NULL DEFAULT false
    declaration jsonb
    since timestamp with time zone NOT NULL DEFAULT now()
    next_tick timestamp with time zone
    last_tick timestamp with time zone
    last_job_id bigint
    created_at timestamp with time zone NOT NULL DEFAULT now()
    updated_at timestamp with time zone NOT NULL DEFAULT now()
    CONSTRAINT schedules_expression_is_cron_or_every CHECK (((char_length(expression) <= 256) AND (expression ~* '^(@?every\s+\S.*|@[a-z]+|\S+(\s+\S+){4,5})$'::text)))
    CONSTRAINT schedules_grace_is_a_second_or_more CHECK (((grace >= '00:00:01'::interval) AND (grace <= '36500 days'::interval)))
    CONSTRAINT schedules_keys_have_1_to_512_characters CHECK ((((char_length(unique_key) >= 1) AND (char_length(unique_key) <= 512)) AND ((char_length(group_key) >= 1) AND (char_length(group_key) <= 512))))
    CONSTRAINT schedules_max_attempts_is_positive CHECK ((max_attempts >= 1))
    CONSTRAINT schedules_misfire_is_skip_latest_or_all CHECK ((misfire = ANY (ARRAY['skip'::text, 'latest'::text, 'all'::text])))
    CONSTRAINT schedules_names_have_1_to_128_characters CHECK ((((char_length(name) >= 1) AND (char_length(name) <= 128)) AND ((char_length(task) >= 1) AND (char_length(task) <= 128)) AND ((char_length(queue) >= 1) AND (char_length(queue) <= 128)) AND ((char_length(time_zone) >= 1) AND (char_length(time_zone) <= 64))))
    CONSTRAINT schedules_overlap_is_allow_or_skip CHECK ((overlap = ANY (ARRAY['allow'::text, 'skip'::text])))
    CONSTRAINT schedules_payload_is_at_most_1_mib CHECK (((octet_length((payload)::text) <= 1048576) OR (octet_length(replace(replace((payload)::text, ', '::text, ','::text), ': '::text, ':'::text)) <= 1048576)))
    CONSTRAINT schedules_pkey PRIMARY KEY (name)
    CONSTRAINT schedules_priority_is_0_to_9 CHECK (((priority >= 0) AND (priority <= 9)))
    CONSTRAINT schedules_timeout_is_positive CHECK (((timeout >= '00:00:00.000001'::interval) AND (timeout <= '36500 days'::interval)))
    CONSTRAINT schedules_times_are_from_1970_to_9998 CHECK ((((since >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (since <= '9999-01-01 00:00:00+00'::timestamp with time zone)) AND ((next_tick >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (next_tick <= '9999-01-01 00:00:00+00'::timestamp with time zone)) AND ((last_tick >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (last_tick <= '9999-01-01 00:00:00+00'::timestamp with time zone))))
    CREATE INDEX schedules_next ON pgqueue.schedules USING btree (COALESCE(next_tick, '-infinity'::timestamp with time zone)) WHERE (NOT paused)
    CREATE UNIQUE INDEX schedules_pkey ON pgqueue.schedules USING btree (name)
    GRANT arwd TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.throttles
    unique_key text NOT NULL
    job_id bigint NOT NULL
    since timestamp with time zone NOT NULL
    until timestamp with time zone NOT NULL
    CONSTRAINT throttles_pkey PRIMARY KEY (unique_key)
    CREATE UNIQUE INDEX throttles_pkey ON pgqueue.throttles USING btree (unique_key)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.ticks
    schedule text NOT NULL
    tick timestamp with time zone NOT NULL
    job_id bigint NOT NULL
    fired_at timestamp with time zone NOT NULL DEFAULT now()
    CONSTRAINT ticks_pkey PRIMARY KEY (schedule, tick)
    CONSTRAINT ticks_schedule_fkey FOREIGN KEY (schedule) REFERENCES pgqueue.schedules(name) ON DELETE CASCADE
    CREATE UNIQUE INDEX ticks_pkey ON pgqueue.ticks USING btree (schedule, tick)
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

TABLE pgqueue.tokens
    WITH (fillfactor=70)
    id bigint NOT NULL IDENTITY
    name text NOT NULL
    hash bytea
    scopes text[] NOT NULL
    queues text[] NOT NULL DEFAULT '{*}'::text[]
    created_at timestamp with time zone NOT NULL DEFAULT now()
    expires_at timestamp with time zone
    last_used_at timestamp with time zone
    revoked_at timestamp with time zone
    CONSTRAINT tokens_hash UNIQUE (hash)
    CONSTRAINT tokens_hash_is_of_sha_256 CHECK ((octet_length(hash) = 32))
    CONSTRAINT tokens_have_a_hash_until_they_are_revoked CHECK (((hash IS NULL) = (revoked_at IS NOT NULL)))
    CONSTRAINT tokens_name_has_1_to_128_characters CHECK (((char_length(name) >= 1) AND (char_length(name) <= 128)))
    CONSTRAINT tokens_pkey PRIMARY KEY (id)
    CONSTRAINT tokens_queues_are_1_to_100_globs CHECK ((((cardinality(queues) >= 1) AND (cardinality(queues) <= 100)) AND (array_ndims(queues) = 1) AND (array_position(queues, NULL::text) IS NULL) AND (array_position(queues, ''::text) IS NULL)))
    CONSTRAINT tokens_scopes_are_known CHECK ((((cardinality(scopes) >= 1) AND (cardinality(scopes) <= 4)) AND (array_ndims(scopes) = 1) AND (scopes <@ ARRAY['enqueue'::text, 'work'::text, 'read'::text, 'admin'::text])))
    CONSTRAINT tokens_times_are_from_1970_to_9998 CHECK ((((created_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (created_at <= '9999-01-01 00:00:00+00'::timestamp with time zone)) AND ((expires_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (expires_at <= '9999-01-01 00:00:00+00'::timestamp with time zone)) AND ((last_used_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (last_used_at <= '9999-01-01 00:00:00+00'::timestamp with time zone)) AND ((revoked_at >= '1970-01-01 00:00:00+00'::timestamp with time zone) AND (revoked_at <= '9999-01-01 00:00:00+00'::timestamp with time zone))))
    CREATE UNIQUE INDEX tokens_hash ON pgqueue.tokens USING btree (hash)
    CREATE UNIQUE INDEX tokens_name ON pgqueue.tokens USING btree (name) WHERE (revoked_at IS NULL)
    CREATE UNIQUE INDEX tokens_pkey ON pgqueue.tokens USING btree (id)
    GRANT arwd TO pgqueue_admin

SEQUENCE pgqueue.tokens_id_seq
    GRANT the default TO the default

TABLE pgqueue.workers
    WITH (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=200, fillfactor=50)
    name text NOT NULL
    host text NOT NULL
    pid integer NOT NULL
    queues text[] NOT NULL
    slots integer NOT NULL
    running integer NOT NULL DEFAULT 0
    version text NOT NULL
    stopping boolean NOT NULL DEFAULT false
    started_at timestamp with time zone NOT NULL DEFAULT now()
    heartbeat_at timestamp with time zone NOT NULL DEFAULT now()
    CONSTRAINT workers_pkey PRIMARY KEY (name)
    CREATE UNIQUE INDEX workers_pkey ON pgqueue.workers USING btree (name)
    GRANT arwd TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT arwd TO pgqueue_worker

VIEW pgqueue.all_jobs
    id bigint
    queue text
    task text
    state text
    payload jsonb
    priority smallint
    attempt smallint
    max_attempts smallint
    run_at timestamp with time zone
    created_at timestamp with time zone
    started_at timestamp with time zone
    finished_at timestamp with time zone
    lease_until timestamp with time zone
    worker text
    cancel_requested boolean
    timeout interval
    unique_key text
    progress jsonb
    result jsonb
    errors jsonb
    meta jsonb
    group_key text
    batch_id bigint
    depends_on bigint[]
    pending integer
    AS SELECT id, queue, task, CASE WHEN ((state = 'available'::pgqueue.job_state) AND (run_at > now())) THEN CASE WHEN ((attempt)::smallint > 0) THEN 'retrying'::text ELSE 'scheduled'::text END ELSE (state)::text END AS state, payload, (priority)::smallint AS priority, (attempt)::smallint AS attempt, (max_attempts)::smallint AS max_attempts, CASE WHEN (state = 'blocked'::pgqueue.job_state) THEN due_at ELSE run_at END AS run_at, created_at, started_at, NULL::timestamp with time zone AS finished_at, lease_until, worker, cancel_requested, timeout, unique_key, progress, NULL::jsonb AS result, errors, meta, group_key, batch_id, depends_on, COALESCE(pending, 0) AS pending FROM pgqueue.jobs UNION ALL SELECT id, queue, task, (state)::text AS state, payload, priority, attempt, max_attempts, run_at, created_at, started_at, finished_at, NULL::timestamp with time zone AS lease_until, worker, false AS cancel_requested, timeout, unique_key, progress, result, errors, meta, group_key, batch_id, depends_on, 0 AS pending FROM pgqueue.history;
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

VIEW pgqueue.queue_stats
    queue text
    paused boolean
    available bigint
    scheduled bigint
    retrying bigint
    blocked bigint
    running bigint
    oldest_ready_seconds double precision
    AS SELECT COALESCE(queue, name) AS queue, COALESCE(paused, false) AS paused, count(*) FILTER (WHERE ((state = 'available'::pgqueue.job_state) AND (run_at <= now()))) AS available, count(*) FILTER (WHERE ((state = 'available'::pgqueue.job_state) AND (run_at > now()) AND ((attempt)::smallint = 0))) AS scheduled, count(*) FILTER (WHERE ((state = 'available'::pgqueue.job_state) AND (run_at > now()) AND ((attempt)::smallint > 0))) AS retrying, count(*) FILTER (WHERE (state = 'blocked'::pgqueue.job_state)) AS blocked, count(*) FILTER (WHERE (state = 'running'::pgqueue.job_state)) AS running, (COALESCE(EXTRACT(epoch FROM (now() - min(run_at) FILTER (WHERE ((state = 'available'::pgqueue.job_state) AND (run_at <= now()))))), (0)::numeric))::double precision AS oldest_ready_seconds FROM (pgqueue.jobs j FULL JOIN pgqueue.queues q ON ((name = queue))) GROUP BY COALESCE(queue, name), COALESCE(paused, false);
    GRANT r TO pgqueue_admin
    GRANT r TO pgqueue_reader
    GRANT r TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.acceptable(task text, payload jsonb, queue text, priority integer, due timestamp with time zone, max_attempts integer, timeout interval, unique_key text, meta jsonb)
 RETURNS boolean
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$
    SELECT char_length(task) BETWEEN 1 AND 128
       AND char_length(queue) BETWEEN 1 AND 128
       AND CASE WHEN pg_column_size(payload) <= 4096 THEN true ELSE pgqueue.fits(payload) END
       AND priority BETWEEN 0 AND 9
       AND max_attempts BETWEEN 1 AND 32767
       AND due BETWEEN '1970-01-01Z' AND '9999-01-01Z'
       AND (timeout IS NULL OR timeout BETWEEN interval '1 microsecond' AND interval '36500 days')
       AND (unique_key IS NULL OR char_length(unique_key) BETWEEN 1 AND 512)
       AND (meta IS NULL OR (jsonb_typeof(meta) = 'object' AND pg_column_size(meta) <= 65536))
$function$;
-- pgqueue.acceptable(text,jsonb,text,integer,timestamp with time zone,integer,interval,text,jsonb)

CREATE OR REPLACE FUNCTION pgqueue.autoscale(queue text, most integer DEFAULT 10000)
 RETURNS bigint
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
 SET enable_sort TO 'off'
 SET max_parallel_workers_per_gather TO '0'
 SET jit TO 'off'
AS $function$
    WITH room AS MATERIALIZED (
        SELECT greatest(least(autoscale.most, q.max_running), 0) AS jobs, coalesce(q.paused, false) AS paused
        FROM (VALUES (autoscale.queue)) AS asked(name) LEFT JOIN pgqueue.queues q ON q.name = asked.name
    )
    SELECT count(*) FROM (
        SELECT FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
            SELECT FROM pgqueue.jobs j
            WHERE j.group_key IS NULL AND j.queue = autoscale.queue AND j.priority = lane.priority AND j.run_at <= now()
            ORDER BY j.run_at DESC, j.id DESC
            LIMIT (SELECT r.jobs FROM room r)
        ) plain
        WHERE NOT (SELECT r.paused FROM room r)
        UNION ALL
        (SELECT FROM pgqueue.jobs j
         WHERE j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.queue = autoscale.queue AND j.run_at <= now()
           AND NOT (SELECT r.paused FROM room r)
         ORDER BY j.run_at DESC, j.id DESC
         LIMIT (SELECT r.jobs FROM room r))
        UNION ALL
        SELECT FROM pgqueue.leases l CROSS JOIN LATERAL unnest(l.job_ids) AS held(id) CROSS JOIN LATERAL (
            SELECT FROM pgqueue.jobs j
            WHERE j.id = held.id AND j.lease_token = l.token AND j.queue = autoscale.queue
            LIMIT 1
        ) running
        WHERE (SELECT r.paused FROM room r)
        LIMIT (SELECT r.jobs FROM room r)
    ) wanted
$function$;
-- pgqueue.autoscale(text,integer)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_reader
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.backfill(name text, ticks timestamp with time zone[])
 RETURNS SETOF bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    due pgqueue.schedules;
    tick timestamptz;
    job_id bigint;
BEGIN
    SELECT s.* INTO due FROM pgqueue.schedules s WHERE s.name = backfill.name FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('there is no schedule %L', name);
    END IF;
    IF EXISTS (SELECT FROM unnest(ticks) t WHERE t > now() OR NOT isfinite(t) OR t IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'only ticks of the past can be backfilled';
    END IF;
    FOR tick IN SELECT DISTINCT t FROM unnest(ticks) t ORDER BY t LOOP
        job_id := pgqueue.fire(due, tick, NULL, '{"backfill": true}');
        IF job_id IS NOT NULL THEN
            RETURN NEXT job_id;
        END IF;
    END LOOP;
END $function$;
-- pgqueue.backfill(text,timestamp with time zone[])
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.bell_key(queue text)
 RETURNS bigint
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$ SELECT hashtextextended('pgqueue.bell ' || queue, 0) $function$;
-- pgqueue.bell_key(text)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.cancel(job_id bigint)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    found_state text;
    is_linked boolean;
BEGIN
    LOOP
        -- Who ends its upstream locks first the batch, then what is blocked: so do we.
        PERFORM FROM pgqueue.batches b
        WHERE b.id = (SELECT j.batch_id FROM pgqueue.jobs j WHERE j.id = job_id AND j.state = 'blocked') FOR NO KEY UPDATE;
        WITH gone AS (
            DELETE FROM pgqueue.jobs j WHERE j.id = job_id AND j.state IN ('available', 'blocked') RETURNING j.*
        ), landed AS (
            INSERT INTO pgqueue.history AS h
                (id, run_at, created_at, started_at, lease_token, state, priority, attempt, max_attempts, queue, task, payload,
                 timeout, unique_key, worker, progress, errors, meta, group_key, batch_id, depends_on)
            SELECT id, coalesce(due_at, run_at), created_at, started_at, lease_token, 'cancelled', priority, attempt, max_attempts, queue, task,
                   payload, timeout, unique_key, worker, progress, errors, meta, group_key, batch_id, depends_on FROM gone
        )
        SELECT 'cancelled', g.has_followers OR g.batch_id IS NOT NULL OR g.depends_on IS NOT NULL INTO found_state, is_linked FROM gone g;
        IF is_linked THEN
            DELETE FROM pgqueue.dependencies d WHERE d.job_id = cancel.job_id;
            PERFORM pgqueue.settle(ARRAY[cancel.job_id]);
        END IF;
        EXIT WHEN found_state IS NOT NULL;
        UPDATE pgqueue.jobs j SET cancel_requested = true WHERE j.id = job_id AND j.state = 'running'
        RETURNING j.state::text INTO found_state;
        IF FOUND THEN
            IF pg_notification_queue_usage() < 0.5 THEN  -- else its worker hears of it when it renews the lease
                PERFORM pg_notify('pgqueue.cancel', job_id::text);
            END IF;
            EXIT;
        END IF;
        SELECT a.state INTO found_state FROM pgqueue.all_jobs a WHERE a.id = job_id;
        EXIT WHEN found_state IS NULL OR found_state IN ('completed', 'dead', 'cancelled');
        -- it changed its state between the statements: look again
    END LOOP;
    RETURN found_state;
END $function$;
-- pgqueue.cancel(bigint)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.cancel_batch(batch_id bigint)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    gone bigint[];
    asked bigint;
BEGIN
    IF NOT EXISTS (SELECT FROM pgqueue.batches b WHERE b.id = cancel_batch.batch_id) THEN
        RETURN NULL;
    END IF;
    -- Locks as a finish takes them: what may run, the batch, what is blocked.
    PERFORM FROM pgqueue.jobs j WHERE j.batch_id = cancel_batch.batch_id AND j.state <> 'blocked' ORDER BY j.id FOR UPDATE;
    PERFORM FROM pgqueue.batches b WHERE b.id = cancel_batch.batch_id FOR NO KEY UPDATE;
    PERFORM FROM pgqueue.jobs j WHERE j.batch_id = cancel_batch.batch_id AND j.state = 'blocked' ORDER BY j.id FOR UPDATE;
    WITH waiting AS (
        DELETE FROM pgqueue.jobs j WHERE j.batch_id = cancel_batch.batch_id AND j.state <> 'running' RETURNING j.*
    ), landed AS (
        INSERT INTO pgqueue.history AS h (id, run_at, created_at, started_at, state, priority, attempt, max_attempts, queue, task, payload,
            timeout, unique_key, worker, progress, errors, meta, group_key, batch_id, depends_on)
        SELECT w.id, coalesce(w.due_at, w.run_at), w.created_at, w.started_at, 'cancelled', w.priority, w.attempt, w.max_attempts, w.queue,
            w.task, w.payload, w.timeout, w.unique_key, w.worker, w.progress, w.errors, w.meta, w.group_key, w.batch_id, w.depends_on
        FROM waiting w
        RETURNING h.id
    )
    SELECT coalesce(array_agg(l.id), '{}') INTO gone FROM landed l;
    DELETE FROM pgqueue.dependencies d WHERE d.job_id = ANY (gone);
    PERFORM pgqueue.settle(gone);
    FOR asked IN UPDATE pgqueue.jobs j SET cancel_requested = true
                 WHERE j.batch_id = cancel_batch.batch_id AND j.state = 'running' AND NOT j.cancel_requested RETURNING j.id LOOP
        IF pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify('pgqueue.cancel', asked::text);
        END IF;
    END LOOP;
    RETURN cardinality(gone);
END $function$;
-- pgqueue.cancel_batch(bigint)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.check_options(unique_key text, unique_for interval, on_conflict text, group_key text, depends_on bigint[], on_dead text)
 RETURNS void
 LANGUAGE plpgsql
 IMMUTABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    wrong text := CASE
        WHEN char_length(group_key) NOT BETWEEN 1 AND 512 THEN 'group_key must have 1 to 512 characters'
        WHEN unique_for IS NOT NULL AND unique_key IS NULL THEN 'unique_for needs a unique_key'
        WHEN unique_for NOT BETWEEN interval '1 microsecond' AND interval '36500 days' THEN 'unique_for must be positive, and at most 36500 days'
        WHEN on_conflict IS NULL OR on_conflict NOT IN ('skip', 'replace', 'raise') THEN 'on_conflict must be skip, replace or raise'
        WHEN on_dead IS NULL OR on_dead NOT IN ('cancel', 'continue', 'hold') THEN 'on_dead must be cancel, continue or hold'
        WHEN cardinality(depends_on) > 10000 THEN 'depends_on must name at most 10000 jobs; let a batch stand for more'
        WHEN array_position(depends_on, NULL) IS NOT NULL THEN 'depends_on must not hold NULL' END;
BEGIN
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = wrong;
    END IF;
END $function$;
-- pgqueue.check_options(text,interval,text,text,bigint[],text)

CREATE OR REPLACE FUNCTION pgqueue.claim_managed(queue text, tasks text[], most integer, token bigint, lease interval, worker text, mark_ats timestamp with time zone[], mark_ids bigint[], hints text[] DEFAULT NULL::text[])
 RETURNS TABLE(priority smallint, run_at timestamp with time zone, id bigint, queue_name text, task text, payload text, attempt smallint, max_attempts smallint, timeout double precision, meta text, suspect boolean, group_key text)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET lock_timeout TO '250ms'
AS $function$
#variable_conflict use_column
DECLARE
    q pgqueue.queues;
    bucket pgqueue.buckets;
    was pgqueue.buckets;
    moment timestamptz;
    held bigint[];
    running bigint := 0;
    busy jsonb := '{}';  -- how many run of each key
    room integer := most;
    budget integer := 200 + most;
    picked record;
    n integer;
    lanes bigint[] := '{}';
    lines bigint[] := '{}';
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'a queue with keys or limits is claimed under READ COMMITTED only';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue.claim ' || claim_managed.queue, 0));
    moment := clock_timestamp();  -- not now(): we may have waited
    SELECT x.* INTO q FROM pgqueue.queues x WHERE x.name = claim_managed.queue;
    IF NOT FOUND THEN
        q.name := claim_managed.queue; q.per_key := 1; q.limited := false; q.paused := false;
    END IF;
    IF q.paused THEN
        RETURN;
    END IF;
    SELECT b.* INTO bucket FROM pgqueue.buckets b WHERE b.queue = q.name AND b.group_key = '';
    IF NOT FOUND THEN
        bucket.queue := q.name; bucket.group_key := ''; bucket.after_key := '';
        bucket.tokens := 0; bucket.filled_at := '-infinity';
    END IF;
    was := bucket;

    -- What runs: by the leases of such claims, and by those from before there were limits.
    IF q.limited AND (bucket.limited_since IS NULL OR bucket.limited_since < q.limited_at) THEN
        bucket.limited_since := moment;
    END IF;
    IF q.max_running IS NOT NULL OR q.per_key > 0 THEN
        held := ARRAY(
            SELECT unnest(l.job_ids) FROM pgqueue.leases l
            WHERE l.queue = q.name OR (q.max_running IS NOT NULL AND l.queue IS NULL AND l.claimed_at < bucket.limited_since));
        SELECT coalesce(sum(k.n), 0), coalesce(jsonb_object_agg(k.group_key, k.n) FILTER (WHERE k.group_key IS NOT NULL), '{}')
        INTO running, busy
        FROM (SELECT j.group_key, count(*) AS n FROM pgqueue.jobs j
              WHERE j.id = ANY (held) AND j.state = 'running' AND j.queue = q.name GROUP BY j.group_key) k;
    END IF;
    room := least(room, q.max_running - running);
    IF q.rate IS NOT NULL THEN
        q.burst := coalesce(q.burst, greatest(1, ceil(q.rate)));
        bucket.tokens := CASE WHEN was.filled_at = '-infinity' THEN q.burst
                              ELSE pgqueue.tokens_now(bucket.tokens, bucket.filled_at, q.rate, q.burst, moment) END;
        room := least(room, floor(bucket.tokens)::integer);
    END IF;
    IF room <= 0 THEN
        RETURN;
    END IF;
    q.key_burst := coalesce(q.key_burst, greatest(1, ceil(q.key_rate)));

    -- Lines get half of the room, lanes the other, and each what the other leaves. A single place goes by chance.
    IF bucket.barren_at > moment - interval '100 ms' AND bucket.barren_at <= moment THEN
        budget := 0;  -- very many lines, and none to be started: they are looked through little by little
    END IF;
    SELECT p.* INTO picked FROM pgqueue.pick_lines(q, tasks, room, budget, busy, bucket.after_key, hints, moment) p;
    n := cardinality(picked.ids);
    IF q.limited THEN
        lanes := pgqueue.pick_lanes(q, tasks, greatest(room - n, room / 2 + room % 2 * (token % 2)::integer), mark_ats, mark_ids, moment);
        room := room - cardinality(lanes);
    END IF;
    IF n > 0 AND room > 0 THEN
        lines := ARRAY(
            SELECT j.id FROM pgqueue.jobs j
            WHERE j.id = ANY (picked.ids[:room]) AND j.state = 'available' AND j.run_at <= moment AND j.queue = q.name
            ORDER BY j.id FOR NO KEY UPDATE SKIP LOCKED);
    END IF;

    -- Where the next round begins. Nothing is written while every line is seen and none has to wait for its turn.
    IF n > room THEN
        bucket.after_key := coalesce(picked.keys[least(room, picked.turns)], bucket.after_key);
    ELSIF NOT picked.complete OR cardinality(lines) < n THEN
        bucket.after_key := picked.last_key;
    END IF;
    IF budget > 0 THEN
        bucket.barren_at := CASE WHEN n = 0 AND NOT picked.complete THEN moment END;
    END IF;
    IF q.rate IS NOT NULL AND lanes || lines <> '{}' THEN
        bucket.tokens := bucket.tokens - cardinality(lanes) - cardinality(lines);
        bucket.filled_at := moment;
    END IF;
    IF (bucket.after_key, bucket.barren_at, bucket.limited_since, bucket.filled_at)
       IS DISTINCT FROM (was.after_key, was.barren_at, was.limited_since, was.filled_at) THEN
        bucket.filled_at := CASE WHEN q.rate IS NOT NULL THEN moment ELSE bucket.filled_at END;
        INSERT INTO pgqueue.buckets SELECT bucket.*
        ON CONFLICT ON CONSTRAINT buckets_pkey DO UPDATE SET tokens = excluded.tokens, filled_at = excluded.filled_at,
            after_key = excluded.after_key, barren_at = excluded.barren_at, limited_since = excluded.limited_since;
    END IF;

    IF lanes || lines = '{}' THEN
        RETURN;
    END IF;
    IF q.key_rate IS NOT NULL AND lines <> '{}' THEN
        INSERT INTO pgqueue.buckets AS b (queue, group_key, tokens, filled_at)
        SELECT q.name, j.group_key, q.key_burst - count(*), moment
        FROM pgqueue.jobs j WHERE j.id = ANY (lines) GROUP BY j.group_key ORDER BY j.group_key
        ON CONFLICT ON CONSTRAINT buckets_pkey DO UPDATE SET filled_at = moment,
            tokens = pgqueue.tokens_now(b.tokens, b.filled_at, q.key_rate, q.key_burst, moment) - (q.key_burst - excluded.tokens);
    END IF;
    INSERT INTO pgqueue.leases (token, lease_until, claimed_at, worker, queue, job_ids)
    VALUES (claim_managed.token, moment + lease, moment, claim_managed.worker, q.name, ARRAY(SELECT t FROM unnest(lanes || lines) t ORDER BY t));
    RETURN QUERY
        WITH started AS (
            UPDATE pgqueue.jobs j
            SET state = 'running', attempt = j.attempt + 1, lease_token = claim_managed.token, lease_until = moment + lease,
                worker = claim_managed.worker, started_at = moment, progress = NULL
            WHERE j.id = ANY (lanes || lines)
            RETURNING j.priority, j.run_at, j.id, j.queue, j.task, j.payload::text AS body, j.attempt, j.max_attempts,
                extract(epoch FROM j.timeout)::float8 AS seconds, j.meta::text,
                j.errors -> -1 ->> 'type' = 'HandlerCrashedError'
                    OR (j.errors -> -1 ->> 'type' = 'LeaseExpired'
                        AND (j.errors -> -2 ->> 'type' = 'LeaseExpired' OR j.attempt = j.max_attempts)) AS suspect, j.group_key
        )
        SELECT s.priority::smallint, s.run_at, s.id, s.queue, s.task, CASE WHEN sum(octet_length(s.body)) OVER () <= 65536 THEN s.body END,
            s.attempt::smallint, s.max_attempts::smallint, s.seconds, s.meta, s.suspect, s.group_key
        FROM started s;
END $function$;
-- pgqueue.claim_managed(text,text[],integer,bigint,interval,text,timestamp with time zone[],bigint[],text[])
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.count_ended(ended bigint[])
 RETURNS bigint[]
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    complete bigint[];
BEGIN
    IF ended = '{}' THEN
        RETURN ended;
    END IF;
    WITH n AS MATERIALIZED (
        SELECT h.batch_id, count(*) FILTER (WHERE h.state = 'completed') AS completed, count(*) FILTER (WHERE h.state = 'dead') AS dead,
            count(*) FILTER (WHERE h.state = 'cancelled') AS cancelled
        FROM pgqueue.history h WHERE h.id = ANY (ended) AND h.finished_at = now() AND h.batch_id IS NOT NULL
        GROUP BY h.batch_id
    ), locked AS MATERIALIZED (
        SELECT b.id FROM pgqueue.batches b WHERE b.id = ANY (ARRAY(SELECT n.batch_id FROM n)) ORDER BY b.id FOR NO KEY UPDATE
    ), counted AS (
        UPDATE pgqueue.batches b SET completed = b.completed + n.completed, dead = b.dead + n.dead, cancelled = b.cancelled + n.cancelled,
            finished_at = CASE WHEN b.completed + b.dead + b.cancelled + n.completed + n.dead + n.cancelled >= b.total THEN now() END
        FROM n WHERE b.id = ANY (ARRAY(SELECT l.id FROM locked l)) AND b.id = n.batch_id
        RETURNING b.id, b.finished_at
    )
    SELECT coalesce(array_agg(c.id), '{}') INTO complete FROM counted c WHERE c.finished_at IS NOT NULL;
    RETURN complete;
END $function$;
-- pgqueue.count_ended(bigint[])

CREATE OR REPLACE FUNCTION pgqueue.create_batch(name text DEFAULT NULL::text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    new_id bigint := nextval('pgqueue.jobs_id_seq');
BEGIN
    IF char_length(name) NOT BETWEEN 1 AND 128 THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'the name of a batch must have 1 to 128 characters';
    END IF;
    INSERT INTO pgqueue.batches (id, name) VALUES (new_id, name);
    RETURN new_id;
END $function$;
-- pgqueue.create_batch(text)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_producer
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.declare_schedules(schedules jsonb)
 RETURNS SETOF text
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    INSERT INTO pgqueue.schedules AS s
        (name, expression, time_zone, task, payload, queue, priority, max_attempts, timeout, misfire, grace, overlap, unique_key,
         group_key, declaration)
    SELECT d.name, d.expression, d.time_zone, d.task, d.payload, d.queue, d.priority, d.max_attempts, d.timeout, d.misfire, d.grace,
           d.overlap, d.unique_key, d.group_key, item
    FROM jsonb_array_elements(schedules) item
    CROSS JOIN LATERAL jsonb_to_record(item) AS d(name text, expression text, time_zone text, task text, payload jsonb, queue text,
        priority smallint, max_attempts smallint, timeout interval, misfire text, grace interval, overlap text, unique_key text,
        group_key text)
    WHERE NOT EXISTS (SELECT FROM pgqueue.schedules old WHERE old.name = d.name AND old.declaration = item)
    ORDER BY d.name COLLATE "C"  -- one order for everybody: workers that start together wait, not deadlock
    ON CONFLICT (name) DO UPDATE SET expression = excluded.expression, time_zone = excluded.time_zone, task = excluded.task,
        payload = excluded.payload, queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts,
        timeout = excluded.timeout, misfire = excluded.misfire, grace = excluded.grace, overlap = excluded.overlap,
        unique_key = excluded.unique_key, group_key = excluded.group_key, declaration = excluded.declaration, updated_at = now()
    WHERE s.declaration IS DISTINCT FROM excluded.declaration
    RETURNING s.name
$function$;
-- pgqueue.declare_schedules(jsonb)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.due(delay interval, run_at timestamp with time zone)
 RETURNS timestamp with time zone
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$
    SELECT CASE WHEN delay IS NULL THEN coalesce(run_at, now())
                WHEN run_at IS NULL AND delay >= interval '0' THEN now() + delay END
$function$;
-- pgqueue.due(interval,timestamp with time zone)

CREATE OR REPLACE FUNCTION pgqueue.enqueue(task text, payload jsonb DEFAULT '{}'::jsonb, queue text DEFAULT 'default'::text, priority integer DEFAULT 5, delay interval DEFAULT NULL::interval, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, max_attempts integer DEFAULT 10, timeout interval DEFAULT NULL::interval, unique_key text DEFAULT NULL::text, meta jsonb DEFAULT NULL::jsonb, group_key text DEFAULT NULL::text, unique_for interval DEFAULT NULL::interval, on_conflict text DEFAULT 'skip'::text, depends_on bigint[] DEFAULT NULL::bigint[], on_dead text DEFAULT 'cancel'::text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_variable
DECLARE
    due timestamptz;
    new_id bigint;
BEGIN
    IF unique_key IS NOT NULL OR group_key IS NOT NULL OR depends_on IS NOT NULL OR unique_for IS NOT NULL
       OR on_conflict IS DISTINCT FROM 'skip' OR on_dead IS DISTINCT FROM 'cancel' THEN
        SELECT s.id INTO new_id FROM pgqueue.submit_one(task, payload, queue, priority, delay, run_at, max_attempts, timeout, unique_key,
            meta, group_key, unique_for, on_conflict, depends_on, on_dead) s;
        RETURN new_id;
    END IF;
    due := pgqueue.due(delay, run_at);
    IF pgqueue.acceptable(task, payload, queue, priority, due, max_attempts, timeout, NULL, meta) IS NOT TRUE THEN
        PERFORM pgqueue.reject(task, payload, queue, priority, delay, run_at, max_attempts, timeout, NULL, meta);
    END IF;
    INSERT INTO pgqueue.jobs AS j (task, payload, queue, priority, run_at, max_attempts, timeout, meta)
    VALUES (task, payload, queue, priority, due, max_attempts, timeout, meta)
    RETURNING j.id INTO new_id;
    -- The body of pgqueue.ring, without the price of another call. A worker asleep looks ahead, so a job that is
    -- due later than its longest sleep (a minute) needs no bell.
    IF due <= now() + interval '1 minute' THEN
        IF pg_try_advisory_lock(hashtextextended('pgqueue.bell ' || queue, 0)) THEN
            PERFORM pg_advisory_unlock(hashtextextended('pgqueue.bell ' || queue, 0));
        ELSIF pg_notification_queue_usage() < 0.5 THEN
            PERFORM pg_notify('pgqueue.wake', queue);
        END IF;
    END IF;
    RETURN new_id;
END $function$;
-- pgqueue.enqueue(text,jsonb,text,integer,interval,timestamp with time zone,integer,interval,text,jsonb,text,interval,text,bigint[],text)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_producer
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.enqueue_many(jobs jsonb)
 RETURNS SETOF bigint
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    SELECT s.id FROM pgqueue.submit_many(jobs) s
$function$;
-- pgqueue.enqueue_many(jsonb)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_producer
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.enqueue_together(jobs jsonb)
 RETURNS SETOF bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    ids bigint[];
    queues text[];
BEGIN
    WITH landed AS (
        INSERT INTO pgqueue.jobs AS j (task, payload, queue, priority, run_at, max_attempts, timeout, meta)
        SELECT r.task, given.payload, given.queue, given.priority,
            CASE WHEN given.extra <> '{}' THEN pgqueue.refuse_options(given.extra)
                 WHEN pgqueue.acceptable(r.task, given.payload, given.queue, given.priority, pgqueue.due(r.delay, r.run_at),
                     given.max_attempts, r.timeout, NULL, r.meta) THEN pgqueue.due(r.delay, r.run_at)
                 ELSE pgqueue.reject(r.task, given.payload, given.queue, given.priority, r.delay, r.run_at, given.max_attempts, r.timeout,
                     NULL, r.meta) END,
            given.max_attempts, r.timeout, r.meta
        FROM jsonb_array_elements(jobs) WITH ORDINALITY AS e(item, nth)
        CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority integer, delay interval, run_at timestamptz,
            max_attempts integer, timeout interval, meta jsonb)
        CROSS JOIN LATERAL (SELECT coalesce(e.item -> 'payload', '{}') AS payload, coalesce(r.queue, 'default') AS queue,
            coalesce(r.priority, 5) AS priority, coalesce(r.max_attempts, 10) AS max_attempts,
            e.item - '{task,payload,queue,priority,delay,run_at,max_attempts,timeout,meta}'::text[] AS extra) AS given
        ORDER BY e.nth
        RETURNING j.id, j.queue, j.run_at
    )
    SELECT array_agg(l.id ORDER BY l.id), array_agg(DISTINCT l.queue) FILTER (WHERE l.run_at <= now() + interval '1 minute')
    INTO ids, queues
    FROM landed l;
    PERFORM pgqueue.ring(q) FROM unnest(queues) q;
    RETURN QUERY SELECT unnest(ids);
END $function$;
-- pgqueue.enqueue_together(jsonb)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_producer
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.find_token(hash bytea)
 RETURNS SETOF pgqueue.tokens
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    token pgqueue.tokens;
BEGIN
    SELECT t.* INTO token FROM pgqueue.tokens t
    WHERE t.hash = find_token.hash AND (t.expires_at IS NULL OR t.expires_at > now());
    IF NOT FOUND THEN
        RETURN;
    END IF;
    IF token.last_used_at IS NULL OR token.last_used_at <= now() - interval '1 minute' THEN
        UPDATE pgqueue.tokens t SET last_used_at = now()
        WHERE t.id = (
            SELECT s.id FROM pgqueue.tokens s
            WHERE s.id = token.id AND (s.last_used_at IS NULL OR s.last_used_at <= now() - interval '1 minute')
            FOR NO KEY UPDATE SKIP LOCKED);
    END IF;
    RETURN NEXT token;
END $function$;
-- pgqueue.find_token(bytea)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.fire(due pgqueue.schedules, tick timestamp with time zone, unique_key text, note jsonb)
 RETURNS bigint
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
AS $function$
DECLARE
    job record;
BEGIN
    IF tick IS NULL OR EXISTS (SELECT FROM pgqueue.ticks t WHERE t.schedule = due.name AND t.tick = fire.tick) THEN
        RETURN NULL;
    END IF;
    SELECT s.id, s.created INTO job FROM pgqueue.submit_one(
        task => due.task, payload => due.payload, queue => due.queue, priority => due.priority::integer,
        max_attempts => due.max_attempts::integer, timeout => due.timeout, unique_key => unique_key, group_key => due.group_key,
        meta => jsonb_build_object('schedule', due.name, 'tick', tick) || note) s;
    IF NOT job.created THEN
        RETURN NULL;
    END IF;
    INSERT INTO pgqueue.ticks (schedule, tick, job_id) VALUES (due.name, fire.tick, job.id);
    RETURN job.id;
END $function$;
-- pgqueue.fire(pgqueue.schedules,timestamp with time zone,text,jsonb)

CREATE OR REPLACE FUNCTION pgqueue.fits(payload jsonb)
 RETURNS boolean
 LANGUAGE sql
 IMMUTABLE PARALLEL SAFE
AS $function$
    SELECT CASE WHEN pg_column_size(payload) <= 4096 THEN true
                WHEN octet_length(payload::text) <= 1048576 THEN true
                ELSE octet_length(replace(replace(payload::text, ', ', ','), ': ', ':')) <= 1048576 END
$function$;
-- pgqueue.fits(jsonb)

CREATE OR REPLACE FUNCTION pgqueue.forget_ticks()
 RETURNS bigint
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    WITH gone AS (DELETE FROM pgqueue.ticks t WHERE t.fired_at < now() - interval '30 days' RETURNING 1)
    SELECT count(*) FROM gone
$function$;
-- pgqueue.forget_ticks()
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.grow_batch(batch_id bigint, by integer)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    UPDATE pgqueue.batches b SET total = b.total + grow_batch.by,
        finished_at = CASE WHEN b.total + grow_batch.by BETWEEN 1 AND b.completed + b.dead + b.cancelled THEN now() END
    WHERE b.id = grow_batch.batch_id AND (b.finished_at IS NULL OR b.created_at = now());
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('there is no unfinished batch %s', grow_batch.batch_id);
    END IF;
END $function$;
-- pgqueue.grow_batch(bigint,integer)

CREATE OR REPLACE FUNCTION pgqueue.has_tokens()
 RETURNS boolean
 LANGUAGE sql
 STABLE SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    SELECT EXISTS (SELECT FROM pgqueue.tokens)
$function$;
-- pgqueue.has_tokens()
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.key_tokens(q pgqueue.queues, key text, moment timestamp with time zone)
 RETURNS integer
 LANGUAGE sql
 STABLE
AS $function$
    SELECT floor(coalesce(
        (SELECT pgqueue.tokens_now(b.tokens, b.filled_at, q.key_rate, q.key_burst, moment) FROM pgqueue.buckets b
         WHERE b.queue = q.name AND b.group_key = key), q.key_burst))::integer
$function$;
-- pgqueue.key_tokens(pgqueue.queues,text,timestamp with time zone)

CREATE OR REPLACE FUNCTION pgqueue.limit_queue(queue text, limits jsonb)
 RETURNS jsonb
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    wrong text;
    was pgqueue.queues;
    has pgqueue.queues;
BEGIN
    IF (char_length(queue) BETWEEN 1 AND 128) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'queue must have 1 to 128 characters';
    END IF;
    IF jsonb_typeof(limits) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'limits must be a JSON object';
    END IF;
    SELECT k INTO wrong FROM jsonb_object_keys(limits) k
    WHERE k NOT IN ('max_running', 'per_key', 'rate', 'burst', 'key_rate', 'key_burst', 'ageing') LIMIT 1;
    IF wrong IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('%L is not a limit', wrong),
            HINT = 'There are max_running, per_key, rate, burst, key_rate, key_burst and ageing.';
    END IF;
    INSERT INTO pgqueue.queues AS q (name) VALUES (queue) ON CONFLICT (name) DO NOTHING;
    SELECT q.* INTO was FROM pgqueue.queues q WHERE q.name = queue FOR UPDATE;
    has := jsonb_populate_record(was, limits);
    BEGIN
        UPDATE pgqueue.queues q SET max_running = has.max_running, per_key = coalesce(has.per_key, 1), rate = has.rate, burst = has.burst,
            key_rate = has.key_rate, key_burst = has.key_burst, ageing = has.ageing,
            limited_at = CASE WHEN was.limited THEN q.limited_at ELSE clock_timestamp() END, updated_at = now()
        WHERE q.name = queue
        RETURNING q.* INTO has;
    EXCEPTION WHEN check_violation THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
            MESSAGE = 'a limit is out of range: max_running and per_key from 0, burst and key_burst from 1, rates 1e-9 to 1e9, ageing positive';
    END;
    PERFORM pgqueue.ring(queue);
    RETURN to_jsonb(has) - ARRAY['name', 'paused', 'limited', 'limited_at', 'updated_at'];
END $function$;
-- pgqueue.limit_queue(text,jsonb)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.lock_upstream(jobs jsonb)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF jsonb_path_exists(lock_upstream.jobs, '$[*].depends_on') THEN
        PERFORM pgqueue.unmet(ARRAY(
            SELECT CASE WHEN d::text ~ '^[0-9]{1,18}$' THEN d::text::bigint END
            FROM jsonb_path_query(lock_upstream.jobs, 'lax $[*].depends_on[*]') d), 'continue', strict => false);
    END IF;
END $function$;
-- pgqueue.lock_upstream(jsonb)

CREATE OR REPLACE FUNCTION pgqueue.on_schedule_edit()
 RETURNS trigger
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF (NEW.expression, NEW.time_zone) IS DISTINCT FROM (OLD.expression, OLD.time_zone) OR (OLD.paused AND NOT NEW.paused) THEN
            NEW.since := now();
            NEW.next_tick := NULL;
        ELSIF NEW.next_tick IS NOT DISTINCT FROM OLD.next_tick OR NEW.next_tick > OLD.next_tick
              OR (OLD.next_tick IS NULL AND NEW.next_tick IS NOT NULL) THEN  -- a tick, or nothing that a worker waits for
            RETURN NEW;
        END IF;
    END IF;
    IF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('pgqueue.schedules', '');
    END IF;
    RETURN NEW;
END $function$;
-- pgqueue.on_schedule_edit()

CREATE OR REPLACE FUNCTION pgqueue.pause(queue text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF (char_length(queue) BETWEEN 1 AND 128) IS NOT TRUE THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'queue must have 1 to 128 characters';
    END IF;
    INSERT INTO pgqueue.queues AS q (name, paused) VALUES (queue, true)
    ON CONFLICT (name) DO UPDATE SET paused = true, updated_at = now() WHERE NOT q.paused;
    RETURN FOUND;
END $function$;
-- pgqueue.pause(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.pause_schedule(name text)
 RETURNS boolean
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    WITH held AS MATERIALIZED (SELECT s.name, s.paused FROM pgqueue.schedules s WHERE s.name = pause_schedule.name FOR NO KEY UPDATE),
    changed AS (UPDATE pgqueue.schedules s SET paused = true, updated_at = now() FROM held WHERE s.name = held.name AND NOT held.paused)
    SELECT NOT held.paused FROM held
$function$;
-- pgqueue.pause_schedule(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.pick_lanes(q pgqueue.queues, tasks text[], most integer, mark_ats timestamp with time zone[], mark_ids bigint[], moment timestamp with time zone)
 RETURNS bigint[]
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    ids bigint[];
BEGIN
    IF q.ageing IS NULL THEN
        WITH pick AS MATERIALIZED (
            SELECT due.id FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
                SELECT j.id FROM pgqueue.jobs j
                WHERE j.state = 'available' AND j.queue = q.name AND j.priority = lane.priority AND j.group_key IS NULL
                  AND (j.run_at, j.id) > (coalesce(mark_ats[lane.priority + 1], '-infinity'), mark_ids[lane.priority + 1])
                  AND j.run_at <= moment AND (tasks IS NULL OR j.task = ANY (tasks))
                ORDER BY j.run_at, j.id LIMIT most FOR NO KEY UPDATE SKIP LOCKED) due
            LIMIT most
        )
        SELECT array_agg(p.id) INTO ids FROM pick p;
    ELSE
        WITH pick AS MATERIALIZED (
            SELECT due.* FROM generate_series(0, 9) AS lane(priority) CROSS JOIN LATERAL (
                SELECT j.id, j.run_at,
                    j.priority - floor(extract(epoch FROM moment - j.run_at) / extract(epoch FROM q.ageing)) AS rank
                FROM pgqueue.jobs j
                WHERE j.state = 'available' AND j.queue = q.name AND j.priority = lane.priority AND j.group_key IS NULL
                  AND (j.run_at, j.id) > (coalesce(mark_ats[lane.priority + 1], '-infinity'), mark_ids[lane.priority + 1])
                  AND j.run_at <= moment AND (tasks IS NULL OR j.task = ANY (tasks))
                ORDER BY j.run_at, j.id LIMIT most FOR NO KEY UPDATE SKIP LOCKED) due
        ), first AS (
            SELECT p.id FROM pick p ORDER BY p.rank, p.run_at, p.id LIMIT most
        )
        SELECT array_agg(f.id) INTO ids FROM first f;
    END IF;
    RETURN coalesce(ids, '{}');
END $function$;
-- pgqueue.pick_lanes(pgqueue.queues,text[],integer,timestamp with time zone[],bigint[],timestamp with time zone)

CREATE OR REPLACE FUNCTION pgqueue.pick_lines(q pgqueue.queues, tasks text[], room integer, budget integer, busy jsonb, after_key text, hints text[], moment timestamp with time zone, OUT ids bigint[], OUT keys text[], OUT turns integer, OUT last_key text, OUT complete boolean)
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    lines text[];
BEGIN
    WITH RECURSIVE line AS (  -- the head of each key, one probe each
        SELECT 1 AS nth, false AS again, (
            SELECT j FROM pgqueue.jobs j
            WHERE j.queue = q.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.group_key > after_key
            ORDER BY j.group_key, coalesce(j.place, j.id), j.id LIMIT 1) AS head
        WHERE budget > 0
        UNION ALL
        SELECT l.nth + 1, l.again OR (l.head).group_key IS NULL, (
            SELECT j FROM pgqueue.jobs j
            WHERE j.queue = q.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.group_key > coalesce((l.head).group_key, '')
            ORDER BY j.group_key, coalesce(j.place, j.id), j.id LIMIT 1)
        FROM line l
        WHERE l.nth < budget AND NOT (l.again AND ((l.head).group_key IS NULL OR (l.head).group_key > after_key))
    ), chosen AS MATERIALIZED (
        SELECT (l.head).group_key AS name FROM line l
        WHERE (NOT l.again OR (l.head).group_key <= after_key)
          AND (q.per_key <> 1 OR ((l.head).state = 'available' AND (l.head).run_at <= moment))
          AND EXISTS (SELECT FROM pgqueue.starters(q, tasks, (l.head).group_key, busy, moment, 1))
        LIMIT room
    ), found AS MATERIALIZED (
        SELECT coalesce(array_agg(c.name), '{}') AS names FROM chosen c
    )
    SELECT f.names, CASE WHEN cardinality(f.names) >= room THEN f.names[room] ELSE l.name END, l.again AND coalesce(l.name > after_key, true)
    INTO lines, last_key, complete
    FROM found f LEFT JOIN LATERAL (
        SELECT x.again, (x.head).group_key AS name FROM line x WHERE cardinality(f.names) < room ORDER BY x.nth DESC LIMIT 1) l ON true;
    last_key := coalesce(last_key, after_key);
    complete := coalesce(complete, false);

    turns := cardinality(lines);
    IF turns < room AND NOT complete THEN
        lines := lines || ARRAY(
            SELECT late.name
            FROM (SELECT h AS name FROM unnest(hints) h
                  UNION
                  SELECT due.group_key FROM (
                      SELECT j.group_key FROM pgqueue.jobs j
                      WHERE j.queue = q.name AND j.group_key IS NOT NULL AND j.run_at < 'infinity' AND j.state = 'available'
                        AND j.run_at <= moment AND j.run_at > moment - interval '10 seconds'
                      ORDER BY j.run_at DESC, j.id DESC LIMIT 500) due) late
            WHERE late.name <> ALL (lines) AND EXISTS (SELECT FROM pgqueue.starters(q, tasks, late.name, busy, moment, 1))
            LIMIT room - turns);
    END IF;
    IF lines = '{}' THEN
        ids := '{}';
        RETURN;
    END IF;
    SELECT coalesce(array_agg(one.id ORDER BY one.nth, one.turn), '{}'), array_agg(one.name ORDER BY one.nth, one.turn) INTO ids, keys
    FROM (
        SELECT s.id, s.nth, key.turn, key.name
        FROM unnest(lines) WITH ORDINALITY AS key(name, turn)
        CROSS JOIN LATERAL pgqueue.starters(q, tasks, key.name, busy, moment, least(room, 2 * room / cardinality(lines) + 10)) s
        ORDER BY s.nth, key.turn LIMIT room) one;
END $function$;
-- pgqueue.pick_lines(pgqueue.queues,text[],integer,integer,jsonb,text,text[],timestamp with time zone)

CREATE OR REPLACE FUNCTION pgqueue.prune(ahead integer DEFAULT 3)
 RETURNS SETOF text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET "TimeZone" TO 'UTC'
 SET lock_timeout TO '100ms'
AS $function$
DECLARE
    kept record;
    part record;
    day date;
    name text;
    parent text;
    holds_rows boolean;
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('pgqueue.prune', 0)) THEN
        RETURN;
    END IF;
    FOR kept IN SELECT r.state, r.keep FROM pgqueue.retention r ORDER BY r.state LOOP
        parent := 'history_' || kept.state;
        FOR day IN SELECT current_date + n FROM generate_series(0, ahead) n LOOP
            name := parent || to_char(day, '_YYYYMMDD');
            CONTINUE WHEN to_regclass(format('pgqueue.%I', name)) IS NOT NULL;
            EXECUTE format('CREATE TABLE pgqueue.%I (LIKE pgqueue.%I INCLUDING ALL)', name, parent);
            EXECUTE format('WITH moved AS (DELETE FROM pgqueue.%I WHERE finished_at >= %L AND finished_at < %L RETURNING *)
                            INSERT INTO pgqueue.%I SELECT * FROM moved', parent || '_default', day, day + 1, name);
            EXECUTE format('ALTER TABLE pgqueue.%I ATTACH PARTITION pgqueue.%I FOR VALUES FROM (%L) TO (%L)',
                           parent, name, day, day + 1);
            -- Who may read history may also see what the planner's statistics say of each day (pg_stats asks for this).
            EXECUTE format('GRANT SELECT ON pgqueue.%I TO pgqueue_reader, pgqueue_worker, pgqueue_admin', name);
            RETURN NEXT 'created ' || name;
        END LOOP;
        EXECUTE format('DELETE FROM pgqueue.%I WHERE finished_at < now() - %L::interval', parent || '_default', kept.keep);
    END LOOP;
    -- Drops come last, each by itself: somebody who still reads an old day keeps that day, and nothing else.
    FOR kept IN SELECT r.state, r.keep FROM pgqueue.retention r ORDER BY r.state LOOP
        parent := 'history_' || kept.state;
        FOR part IN
            SELECT c.relname, to_date(right(c.relname, 8), 'YYYYMMDD') AS day
            FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = to_regclass('pgqueue.' || parent) AND c.relname ~ '_[0-9]{8}$'
            ORDER BY c.relname
        LOOP
            CONTINUE WHEN part.day >= current_date;
            BEGIN
                EXECUTE format('SELECT EXISTS (SELECT FROM pgqueue.%I)', part.relname) INTO holds_rows;
                CONTINUE WHEN holds_rows AND part.day + 1 + kept.keep > now();
                EXECUTE format('DROP TABLE pgqueue.%I', part.relname);
                RETURN NEXT 'dropped ' || part.relname;
            EXCEPTION WHEN lock_not_available THEN
                RETURN NEXT 'in use: ' || part.relname;
            END;
        END LOOP;
    END LOOP;
    RETURN;
END $function$;
-- pgqueue.prune(integer)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.purge(queue text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    purged bigint;
    linked bigint[];
    complete bigint[];
BEGIN
    -- Locks as in cancel_batch: what may run, the batches, what is blocked.
    PERFORM FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.state = 'available' ORDER BY j.id FOR UPDATE;
    PERFORM FROM pgqueue.batches b WHERE b.id IN (
        SELECT j.batch_id FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.batch_id IS NOT NULL AND j.state = 'blocked')
    ORDER BY b.id FOR NO KEY UPDATE;
    PERFORM FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.state = 'blocked' ORDER BY j.id FOR UPDATE;
    WITH gone AS (
        DELETE FROM pgqueue.jobs j WHERE j.queue = purge.queue AND j.state IN ('available', 'blocked')
        RETURNING j.id, j.batch_id, j.has_followers, j.depends_on
    ), n AS MATERIALIZED (
        SELECT g.batch_id, count(*) AS gone FROM gone g WHERE g.batch_id IS NOT NULL GROUP BY g.batch_id
    ), locked AS MATERIALIZED (
        SELECT b.id FROM pgqueue.batches b WHERE b.id = ANY (ARRAY(SELECT n.batch_id FROM n)) ORDER BY b.id FOR NO KEY UPDATE
    ), counted AS (
        UPDATE pgqueue.batches b SET cancelled = b.cancelled + n.gone,
            finished_at = CASE WHEN b.completed + b.dead + b.cancelled + n.gone >= b.total THEN now() END
        FROM n WHERE b.id = ANY (ARRAY(SELECT l.id FROM locked l)) AND b.id = n.batch_id
        RETURNING b.id, b.finished_at
    )
    SELECT count(*), coalesce(array_agg(g.id) FILTER (WHERE g.has_followers OR g.depends_on IS NOT NULL), '{}'),
           ARRAY(SELECT c.id FROM counted c WHERE c.finished_at IS NOT NULL)
    INTO purged, linked, complete FROM gone g;
    DELETE FROM pgqueue.dependencies d WHERE d.job_id = ANY (linked);
    PERFORM pgqueue.settle(linked || complete);  -- counted above; who waited for them ends, or goes on where on_dead says so
    RETURN purged;
END $function$;
-- pgqueue.purge(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.purge_dead(queue text DEFAULT NULL::text)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    purged bigint;
    awaited bigint[];
BEGIN
    WITH gone AS (
        DELETE FROM pgqueue.history h WHERE h.state = 'dead' AND (purge_dead.queue IS NULL OR h.queue = purge_dead.queue) RETURNING h.id
    )
    SELECT count(*), coalesce(array_agg(g.id) FILTER (WHERE d.upstream_id IS NOT NULL), '{}') INTO purged, awaited
    FROM gone g LEFT JOIN (SELECT DISTINCT x.upstream_id FROM pgqueue.dependencies x) d ON d.upstream_id = g.id;
    PERFORM pgqueue.settle(awaited);
    RETURN purged;
END $function$;
-- pgqueue.purge_dead(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.redrive(queue text DEFAULT NULL::text, task text DEFAULT NULL::text, max_jobs integer DEFAULT 1000)
 RETURNS bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_variable
DECLARE
    moved bigint;
BEGIN
    WITH chosen AS MATERIALIZED (
        SELECT h.id FROM pgqueue.history h
        WHERE h.state = 'dead' AND (queue IS NULL OR h.queue = queue) AND (task IS NULL OR h.task = task)
          AND NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.unique_key = h.unique_key)
        ORDER BY h.finished_at, h.id LIMIT max_jobs
    ), back AS MATERIALIZED (
        SELECT r.id, r.queue AS name FROM pgqueue.redrive_ids(ARRAY(SELECT c.id FROM chosen c)) r
    ), rung AS MATERIALIZED (
        SELECT pgqueue.ring(b.name) FROM (SELECT DISTINCT name FROM back) b
    )
    SELECT count(*) + 0 * (SELECT count(*) FROM rung) INTO moved FROM back;
    RETURN moved;
END $function$;
-- pgqueue.redrive(text,text,integer)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.redrive_ids(job_ids bigint[])
 RETURNS TABLE(id bigint, queue text)
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    WITH found AS MATERIALIZED (
        SELECT h.* FROM pgqueue.history h WHERE h.id = ANY(job_ids) AND h.state IN ('dead', 'cancelled') ORDER BY h.id FOR UPDATE
    ), back AS (
        INSERT INTO pgqueue.jobs AS j (id, run_at, created_at, priority, max_attempts, queue, task, payload, timeout, unique_key, errors, meta,
            group_key, batch_id, depends_on, has_followers)
        SELECT f.id, now(), f.created_at, f.priority, f.max_attempts, f.queue, f.task, f.payload, f.timeout, f.unique_key, f.errors, f.meta,
            f.group_key, f.batch_id, f.depends_on, true  -- somebody may have begun to wait for it while we took it
        FROM found f
        ON CONFLICT DO NOTHING
        RETURNING j.id, j.queue
    ), n AS MATERIALIZED (
        SELECT f.batch_id, count(*) FILTER (WHERE f.state = 'dead') AS dead, count(*) FILTER (WHERE f.state = 'cancelled') AS cancelled
        FROM found f WHERE f.batch_id IS NOT NULL AND f.id IN (SELECT x.id FROM back x) GROUP BY f.batch_id
    ), locked AS MATERIALIZED (
        SELECT b.id FROM pgqueue.batches b WHERE b.id = ANY (ARRAY(SELECT n.batch_id FROM n)) ORDER BY b.id FOR NO KEY UPDATE
    ), uncounted AS (  -- its batch waits for it again
        UPDATE pgqueue.batches b SET dead = b.dead - n.dead, cancelled = b.cancelled - n.cancelled, finished_at = NULL
        FROM n WHERE b.id = ANY (ARRAY(SELECT l.id FROM locked l)) AND b.id = n.batch_id
    ), gone AS (
        DELETE FROM pgqueue.history h USING found f
        WHERE h.id = ANY (job_ids) AND h.id = f.id AND h.state = f.state AND h.finished_at = f.finished_at AND h.id IN (SELECT b.id FROM back b)
    )
    SELECT b.id, b.queue FROM back b
$function$;
-- pgqueue.redrive_ids(bigint[])

CREATE OR REPLACE FUNCTION pgqueue.refuse_cycle(batch_id bigint, upstream bigint[])
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF batch_id <> ALL (upstream) THEN
        IF NOT EXISTS (SELECT FROM pgqueue.dependencies d WHERE d.upstream_id = refuse_cycle.batch_id) THEN
            RETURN;  -- nobody waits for the batch yet; its row is locked by us
        END IF;
        PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue.cycles', 0));
        IF NOT pgqueue.waits_for(batch_id, upstream) THEN
            RETURN;
        END IF;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
        MESSAGE = format('depends_on: batch %s would wait for itself', batch_id);
END $function$;
-- pgqueue.refuse_cycle(bigint,bigint[])

CREATE OR REPLACE FUNCTION pgqueue.refuse_options(extra jsonb)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value',
        MESSAGE = 'these are for pgqueue.submit_many: ' || (SELECT string_agg(key, ', ') FROM jsonb_object_keys(extra) AS key);
END $function$;
-- pgqueue.refuse_options(jsonb)

CREATE OR REPLACE FUNCTION pgqueue.reject(task text, payload jsonb, queue text, priority integer, delay interval, run_at timestamp with time zone, max_attempts integer, timeout interval, unique_key text, meta jsonb, place text DEFAULT ''::text)
 RETURNS timestamp with time zone
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF NOT pgqueue.fits(payload) THEN
        RAISE EXCEPTION USING ERRCODE = 'program_limit_exceeded',
            MESSAGE = format('%spayload of %s bytes is over the limit of 1048576', place, octet_length(payload::text)),
            HINT = 'Store the data in a table of your own and enqueue its key.';
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = place || CASE
        WHEN task IS NULL OR char_length(task) NOT BETWEEN 1 AND 128 THEN 'task must have 1 to 128 characters'
        WHEN queue IS NULL OR char_length(queue) NOT BETWEEN 1 AND 128 THEN 'queue must have 1 to 128 characters'
        WHEN payload IS NULL THEN 'payload must not be NULL; say ''{}'' or ''null''::jsonb'
        WHEN priority IS NULL OR priority NOT BETWEEN 0 AND 9 THEN 'priority must be 0 (first) to 9 (last)'
        WHEN max_attempts IS NULL OR max_attempts NOT BETWEEN 1 AND 32767 THEN 'max_attempts must be 1 to 32767'
        WHEN delay IS NOT NULL AND run_at IS NOT NULL THEN 'say delay or run_at, not both'
        WHEN delay < interval '0' THEN 'delay must not be negative'
        WHEN timeout NOT BETWEEN interval '1 microsecond' AND interval '36500 days' THEN 'timeout must be positive, and at most 36500 days'
        WHEN char_length(unique_key) NOT BETWEEN 1 AND 512 THEN 'unique_key must have 1 to 512 characters'
        WHEN jsonb_typeof(meta) <> 'object' THEN 'meta must be a JSON object'
        WHEN pg_column_size(meta) > 65536 THEN 'meta must be at most 65536 bytes'
        ELSE 'run_at must be finite, from 1970 to 9998' END;
END $function$;
-- pgqueue.reject(text,jsonb,text,integer,interval,timestamp with time zone,integer,interval,text,jsonb,text)

CREATE OR REPLACE FUNCTION pgqueue.related(job_id bigint)
 RETURNS SETOF bigint
 LANGUAGE sql
 STABLE
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET jit TO 'off'
AS $function$
    WITH RECURSIVE known AS (
        SELECT job_id AS id
        UNION
        SELECT near.id
        FROM known k LEFT JOIN LATERAL (
            SELECT a.depends_on, a.batch_id FROM pgqueue.all_jobs a WHERE a.id = k.id OFFSET 0
        ) me ON true
        CROSS JOIN LATERAL (
            SELECT u.id FROM unnest(me.depends_on) AS u(id)
            UNION ALL (SELECT f.id FROM pgqueue.all_jobs f WHERE f.depends_on @> ARRAY[k.id] OFFSET 0)
            UNION ALL (SELECT m.id FROM pgqueue.all_jobs m WHERE m.batch_id = k.id OFFSET 0)
            UNION ALL (SELECT f.id FROM pgqueue.all_jobs f WHERE me.batch_id IS NOT NULL AND f.depends_on @> ARRAY[me.batch_id] OFFSET 0)
        ) near
    )
    SELECT k.id FROM known k LIMIT 2000
$function$;
-- pgqueue.related(bigint)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_reader
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.remove_schedule(name text)
 RETURNS boolean
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    WITH gone AS (DELETE FROM pgqueue.schedules s WHERE s.name = remove_schedule.name RETURNING s.name)
    SELECT count(*) > 0 FROM gone
$function$;
-- pgqueue.remove_schedule(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.resolve(ended bigint[])
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    well bigint[];
    badly bigint[];
    gone bigint[];  -- of those, the ones in no table
    failed bigint[];
    doomed bigint[];
    reasons bigint[];
    freed bigint[];
    freed_by integer[];
    near bigint[];
    held bigint[];
    queue_name text;
BEGIN
    LOOP
        ended := ARRAY(SELECT u.id FROM unnest(ended) u(id)
                       CROSS JOIN LATERAL (SELECT FROM pgqueue.dependencies d WHERE d.upstream_id = u.id LIMIT 1) has);
        EXIT WHEN ended = '{}';
        SELECT coalesce(array_agg(o.id) FILTER (WHERE o.state = 'completed'), '{}'),
               coalesce(array_agg(o.id) FILTER (WHERE o.state <> 'completed'), '{}'),
               coalesce(array_agg(o.id) FILTER (WHERE o.state = 'gone'), '{}')
        INTO well, badly, gone
        FROM (SELECT u.id, CASE WHEN b.id IS NULL THEN coalesce(h.state::text, 'gone')
                                WHEN b.dead + b.cancelled > 0 THEN 'dead' ELSE 'completed' END AS state
              FROM unnest(ended) u(id)
              LEFT JOIN (SELECT x.id, x.state FROM pgqueue.history x WHERE x.id = ANY (ended)) h ON h.id = u.id
              LEFT JOIN (SELECT x.* FROM pgqueue.batches x WHERE x.id = ANY (ended)) b ON b.id = u.id
              LEFT JOIN (SELECT x.id FROM pgqueue.jobs x WHERE x.id = ANY (ended)) j ON j.id = u.id
              WHERE j.id IS NULL AND (b.id IS NULL OR b.completed + b.dead + b.cancelled >= b.total)) o;

        -- Who is concerned, and locks on them; again, until the locks have brought nobody new.
        held := '{}';
        LOOP
            WITH RECURSIVE fallen AS (
                SELECT d.job_id AS id, d.upstream_id FROM pgqueue.dependencies d
                WHERE d.upstream_id = ANY (badly) AND (d.on_dead = 'cancel' OR (d.on_dead = 'hold' AND d.upstream_id = ANY (gone)))
                UNION
                SELECT next.job_id, f.id FROM (SELECT DISTINCT x.id FROM fallen x) f CROSS JOIN LATERAL (
                    SELECT d.job_id FROM pgqueue.dependencies d WHERE d.upstream_id = f.id AND d.on_dead = 'cancel' OFFSET 0) next
            ), once AS (
                SELECT f.id, min(f.upstream_id) AS reason FROM fallen f GROUP BY f.id
            )
            SELECT coalesce(array_agg(o.id ORDER BY o.id), '{}'), coalesce(array_agg(o.reason ORDER BY o.id), '{}')
            INTO doomed, reasons FROM once o;
            failed := badly || doomed;
            near := ARRAY(
                SELECT n.id FROM (
                    SELECT d.job_id AS id FROM pgqueue.dependencies d
                    WHERE d.upstream_id = ANY (well || failed) AND (d.on_dead = 'continue' OR d.upstream_id = ANY (well))
                    UNION SELECT u FROM unnest(doomed) u) n
                EXCEPT SELECT u FROM unnest(held) u ORDER BY 1);
            EXIT WHEN near = '{}';
            IF doomed <> '{}' THEN
                PERFORM FROM pgqueue.batches b
                WHERE b.id = ANY (ARRAY(SELECT DISTINCT j.batch_id FROM pgqueue.jobs j WHERE j.id = ANY (doomed) AND j.batch_id IS NOT NULL))
                ORDER BY b.id FOR NO KEY UPDATE;
            END IF;
            PERFORM FROM pgqueue.jobs j WHERE j.id = ANY (near) ORDER BY j.id FOR UPDATE;
            held := held || near;
        END LOOP;

        WITH met AS (
            DELETE FROM pgqueue.dependencies d
            WHERE d.upstream_id = ANY (well || failed) AND (d.on_dead = 'continue' OR d.upstream_id = ANY (well))
            RETURNING d.job_id
        )
        SELECT coalesce(array_agg(m.job_id ORDER BY m.job_id), '{}'), coalesce(array_agg(m.n ORDER BY m.job_id), '{}')
        INTO freed, freed_by
        FROM (SELECT met.job_id, count(*)::integer AS n FROM met GROUP BY met.job_id) m;
        FOR queue_name IN
            WITH moved AS (
                UPDATE pgqueue.jobs j SET pending = nullif(j.pending - f.n, 0),
                    state = CASE WHEN j.pending <= f.n THEN 'available' ELSE 'blocked' END::pgqueue.job_state,
                    run_at = CASE WHEN j.pending <= f.n THEN greatest(j.due_at, now()) ELSE 'infinity' END,
                    due_at = CASE WHEN j.pending <= f.n THEN NULL ELSE j.due_at END
                FROM unnest(freed, freed_by) f(id, n)
                WHERE j.id = ANY (freed) AND j.id = f.id AND j.state = 'blocked'
                RETURNING j.queue, j.state, j.run_at
            )
            SELECT DISTINCT m.queue FROM moved m WHERE m.state = 'available' AND m.run_at <= now() + interval '1 minute'
        LOOP
            PERFORM pgqueue.ring(queue_name);
        END LOOP;

        EXIT WHEN doomed = '{}';
        DELETE FROM pgqueue.dependencies d WHERE d.job_id = ANY (doomed);
        WITH removed AS (
            DELETE FROM pgqueue.jobs j USING unnest(doomed, reasons) r(id, upstream_id)
            WHERE j.id = ANY (doomed) AND j.id = r.id AND j.state = 'blocked'
            RETURNING j.*, r.upstream_id
        ), landed AS (
            INSERT INTO pgqueue.history AS h (id, run_at, created_at, state, priority, attempt, max_attempts, queue, task, payload, timeout,
                unique_key, progress, errors, meta, group_key, batch_id, depends_on)
            SELECT g.id, coalesce(g.due_at, g.created_at), g.created_at, 'cancelled', g.priority, g.attempt, g.max_attempts, g.queue, g.task,
                g.payload, g.timeout, g.unique_key, g.progress,
                coalesce(g.errors, '[]') || jsonb_build_object('attempt', g.attempt, 'type', 'UpstreamFailed',
                    'at', now(), 'message', format('%s %s, on which it depends, did not complete',
                        CASE WHEN EXISTS (SELECT FROM pgqueue.batches b WHERE b.id = g.upstream_id) THEN 'batch' ELSE 'job' END, g.upstream_id)),
                g.meta, g.group_key, g.batch_id, g.depends_on
            FROM removed g
            RETURNING h.id
        )
        SELECT coalesce(array_agg(l.id), '{}') INTO doomed FROM landed l;
        ended := pgqueue.count_ended(doomed);
    END LOOP;
END $function$;
-- pgqueue.resolve(bigint[])

CREATE OR REPLACE FUNCTION pgqueue.resume(queue text)
 RETURNS boolean
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    UPDATE pgqueue.queues q SET paused = false, updated_at = now() WHERE q.name = queue AND q.paused;
    IF FOUND THEN
        PERFORM pgqueue.ring(queue);
        RETURN true;
    END IF;
    RETURN false;
END $function$;
-- pgqueue.resume(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.resume_schedule(name text)
 RETURNS boolean
 LANGUAGE sql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    WITH held AS MATERIALIZED (SELECT s.name, s.paused FROM pgqueue.schedules s WHERE s.name = resume_schedule.name FOR NO KEY UPDATE),
    changed AS (UPDATE pgqueue.schedules s SET paused = false, updated_at = now() FROM held WHERE s.name = held.name AND held.paused)
    SELECT held.paused FROM held
$function$;
-- pgqueue.resume_schedule(text)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.retry(job_id bigint)
 RETURNS text
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
DECLARE
    found_state text;
    found_queue text;
    was_blocked boolean;
    upstream bigint[];
BEGIN
    WITH waiting AS MATERIALIZED (
        SELECT j.id, j.state = 'blocked' AS blocked FROM pgqueue.jobs j
        WHERE j.id = job_id AND (j.state = 'blocked' OR (j.state = 'available' AND j.run_at > now())) FOR UPDATE
    )
    UPDATE pgqueue.jobs j SET run_at = now(), due_at = NULL, state = 'available', pending = NULL FROM waiting w WHERE j.id = w.id
    RETURNING 'available', j.queue, w.blocked INTO found_state, found_queue, was_blocked;
    IF was_blocked THEN
        DELETE FROM pgqueue.dependencies d WHERE d.job_id = retry.job_id;
    END IF;
    IF found_state IS NULL THEN
        SELECT a.state, CASE WHEN a.started_at IS NULL THEN a.depends_on END INTO found_state, upstream FROM pgqueue.all_jobs a WHERE a.id = job_id;
        IF found_state IS NULL OR found_state NOT IN ('dead', 'cancelled') THEN
            RETURN found_state;
        END IF;
        PERFORM pgqueue.unmet(upstream, 'hold', strict => false) WHERE upstream IS NOT NULL;  -- locked first, as everybody does
        SELECT r.queue INTO found_queue FROM pgqueue.redrive_ids(ARRAY[job_id]) r;
        IF NOT FOUND THEN  -- a live job holds its unique_key, or somebody was faster
            SELECT a.state INTO found_state FROM pgqueue.all_jobs a WHERE a.id = job_id;
            RETURN found_state;
        END IF;
        IF pgqueue.wait_again(job_id, upstream) THEN
            RETURN 'blocked';
        END IF;
    END IF;
    PERFORM pgqueue.ring(found_queue);
    RETURN 'available';
END $function$;
-- pgqueue.retry(bigint)
    GRANT X TO pgqueue_admin

CREATE OR REPLACE FUNCTION pgqueue.ring(queue text, back boolean DEFAULT false)
 RETURNS void
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF back AND pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('pgqueue.back', queue);
    END IF;
    IF pg_try_advisory_lock(hashtextextended('pgqueue.bell ' || queue, 0)) THEN
        PERFORM pg_advisory_unlock(hashtextextended('pgqueue.bell ' || queue, 0));
    ELSIF pg_notification_queue_usage() < 0.5 THEN
        PERFORM pg_notify('pgqueue.wake', queue);
    END IF;
END $function$;
-- pgqueue.ring(text,boolean)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.settle(ended bigint[])
 RETURNS SETOF bigint
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
 SET jit TO 'off'
 SET enable_seqscan TO 'off'
 SET enable_bitmapscan TO 'off'
AS $function$
BEGIN
    IF ended <> '{}' AND current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION USING ERRCODE = 'feature_not_supported',
            MESSAGE = 'jobs that others wait for, or that belong to a batch, can be ended under READ COMMITTED only';
    END IF;
    PERFORM pgqueue.resolve(ended || pgqueue.count_ended(ended));
END $function$;
-- pgqueue.settle(bigint[])
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.starters(q pgqueue.queues, tasks text[], key text, busy jsonb, moment timestamp with time zone, most integer)
 RETURNS TABLE(id bigint, nth bigint)
 LANGUAGE sql
 STABLE
AS $function$
    SELECT head.id, 1::bigint
    FROM (SELECT j.id, j.state, j.run_at, j.task FROM pgqueue.jobs j
          WHERE j.queue = q.name AND j.group_key = key AND j.group_key IS NOT NULL AND j.run_at < 'infinity'
          ORDER BY coalesce(j.place, j.id), j.id LIMIT 1) head
    WHERE q.per_key = 1 AND NOT busy ? key AND head.state = 'available' AND head.run_at <= moment
      AND (tasks IS NULL OR head.task = ANY (tasks)) AND (q.key_rate IS NULL OR pgqueue.key_tokens(q, key, moment) >= 1)
    UNION ALL
    SELECT due.id, row_number() OVER (ORDER BY due.run_at, due.id)
    FROM (SELECT j.id, j.run_at FROM pgqueue.jobs j
          WHERE j.queue = q.name AND j.group_key = key AND j.group_key IS NOT NULL AND j.run_at < 'infinity'
            AND j.state = 'available' AND j.run_at <= moment AND (tasks IS NULL OR j.task = ANY (tasks))
          ORDER BY j.run_at, j.id
          LIMIT greatest(0, least(most, CASE WHEN q.per_key > 0 THEN q.per_key - coalesce((busy ->> key)::integer, 0) END,
                                  CASE WHEN q.key_rate IS NOT NULL THEN pgqueue.key_tokens(q, key, moment) END))) due
    WHERE q.per_key <> 1
$function$;
-- pgqueue.starters(pgqueue.queues,text[],text,jsonb,timestamp with time zone,integer)

CREATE OR REPLACE FUNCTION pgqueue.submit(task text, payload jsonb DEFAULT '{}'::jsonb, queue text DEFAULT 'default'::text, priority integer DEFAULT 5, delay interval DEFAULT NULL::interval, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, max_attempts integer DEFAULT 10, timeout interval DEFAULT NULL::interval, unique_key text DEFAULT NULL::text, meta jsonb DEFAULT NULL::jsonb, group_key text DEFAULT NULL::text, unique_for interval DEFAULT NULL::interval, on_conflict text DEFAULT 'skip'::text, depends_on bigint[] DEFAULT NULL::bigint[], on_dead text DEFAULT 'cancel'::text, batch_id bigint DEFAULT NULL::bigint, OUT id bigint, OUT created boolean)
 RETURNS record
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_variable
BEGIN
    SELECT s.id, s.created INTO id, created FROM pgqueue.submit_one(task, payload, queue, priority, delay, run_at, max_attempts, timeout,
        unique_key, meta, group_key, unique_for, on_conflict, depends_on, on_dead, batch_id) s;
END $function$;
-- pgqueue.submit(text,jsonb,text,integer,interval,timestamp with time zone,integer,interval,text,jsonb,text,interval,text,bigint[],text,bigint)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_producer
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.submit_each(jobs jsonb, batch_id bigint)
 RETURNS TABLE(id bigint, created boolean)
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_column
DECLARE
    item jsonb;
    index integer := 0;
    ids bigint[] := '{}';
    is_live boolean[] := '{}';  -- made here, and depending on nothing that may be dead: it is live
    upstream bigint[];
    siblings bigint[];
    many boolean := submit_each.batch_id IS NOT NULL OR jsonb_path_exists(submit_each.jobs, '$[*].after');
    duplicates integer := 0;
    more text;
BEGIN
    IF submit_each.batch_id IS NULL THEN
        PERFORM pgqueue.lock_upstream(submit_each.jobs);
    END IF;
    BEGIN
        FOR item IN SELECT e FROM jsonb_array_elements(submit_each.jobs) e LOOP
            IF EXISTS (SELECT FROM jsonb_array_elements(item -> 'after') a WHERE jsonb_typeof(a) <> 'number' OR a::numeric NOT BETWEEN 0 AND index - 1) THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'after must name earlier elements, by their index';
            END IF;
            upstream := ARRAY(SELECT d::bigint FROM jsonb_array_elements_text(nullif(item -> 'depends_on', 'null')) d);
            siblings := NULL;
            IF item ? 'after' THEN
                SELECT upstream || coalesce(array_agg(a.id ORDER BY a.id) FILTER (WHERE NOT a.is_live), '{}'),
                    array_agg(a.id ORDER BY a.id) FILTER (WHERE a.is_live)
                INTO upstream, siblings
                FROM (SELECT DISTINCT ids[e::integer + 1] AS id, is_live[e::integer + 1] AS is_live
                      FROM jsonb_array_elements_text(item -> 'after') e) a;
            END IF;
            SELECT s.id, s.created INTO id, created
            FROM jsonb_to_record(item) AS r(task text, queue text, priority integer, delay interval, run_at timestamptz,
                max_attempts integer, timeout interval, unique_key text, meta jsonb, group_key text, unique_for interval, on_conflict text,
                on_dead text)
            CROSS JOIN LATERAL pgqueue.submit_one(r.task, coalesce(item -> 'payload', '{}'), coalesce(r.queue, 'default'), coalesce(r.priority, 5),
                r.delay, r.run_at, coalesce(r.max_attempts, 10), r.timeout, r.unique_key, r.meta, r.group_key, r.unique_for,
                coalesce(r.on_conflict, 'skip'),
                nullif(upstream, '{}'), coalesce(r.on_dead, 'cancel'), submit_each.batch_id, many, siblings) s;
            ids := ids || id;
            is_live := is_live || (created AND upstream = '{}');
            index := index + 1;
            duplicates := duplicates + (NOT created)::integer;
            RETURN NEXT;
        END LOOP;
    EXCEPTION
        WHEN data_exception THEN
            RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = format('job %s: %s', index, SQLERRM);
        WHEN program_limit_exceeded THEN
            GET STACKED DIAGNOSTICS more = PG_EXCEPTION_HINT;
            RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = format('job %s: %s', index, SQLERRM), HINT = more;
        WHEN unique_violation THEN  -- its detail is the id of the job that holds the key
            GET STACKED DIAGNOSTICS more = PG_EXCEPTION_DETAIL;
            RAISE EXCEPTION USING ERRCODE = SQLSTATE, MESSAGE = format('job %s: %s', index, SQLERRM), DETAIL = more;
    END;
    IF duplicates > 0 AND submit_each.batch_id IS NOT NULL THEN  -- a job that was there before belongs to no new batch
        PERFORM pgqueue.grow_batch(submit_each.batch_id, -duplicates);
    END IF;
END $function$;
-- pgqueue.submit_each(jsonb,bigint)

CREATE OR REPLACE FUNCTION pgqueue.submit_many(jobs jsonb, batch_id bigint DEFAULT NULL::bigint)
 RETURNS TABLE(id bigint, created boolean)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_column
DECLARE
    given pgqueue.jobs[];
    bad record;
    missing integer;
    ids bigint[];
    item jsonb;
    fresh bigint[];
    index integer := 0;
BEGIN
    IF jsonb_typeof(submit_many.jobs) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = 'jobs must be a JSON array of objects';
    END IF;
    SELECT e.nth, jsonb_typeof(e.item) AS kind, k.key INTO bad
    FROM jsonb_array_elements(submit_many.jobs) WITH ORDINALITY e(item, nth)
    LEFT JOIN LATERAL (
        SELECT key FROM jsonb_object_keys(CASE WHEN jsonb_typeof(e.item) = 'object' THEN e.item ELSE '{}' END) AS key
        WHERE key NOT IN ('task', 'payload', 'queue', 'priority', 'delay', 'run_at', 'max_attempts', 'timeout', 'unique_key', 'meta',
                          'group_key', 'unique_for', 'on_conflict', 'depends_on', 'on_dead', 'after')
        LIMIT 1) k ON true
    WHERE jsonb_typeof(e.item) <> 'object' OR k.key IS NOT NULL
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('job %s: ', bad.nth - 1)
            || CASE WHEN bad.kind <> 'object' THEN 'must be an object, not ' || bad.kind ELSE format('%L is not an option', bad.key) END;
    END IF;

    IF submit_many.batch_id IS NOT NULL THEN
        PERFORM pgqueue.lock_upstream(submit_many.jobs);
        PERFORM pgqueue.grow_batch(submit_many.batch_id, jsonb_array_length(submit_many.jobs));
    END IF;
    IF jsonb_path_exists(submit_many.jobs, '$[*] ? (exists(@.unique_for) || exists(@.on_conflict) || exists(@.depends_on) || exists(@.after)
        || exists(@.on_dead) || (exists(@.unique_key) && $batch == true))', jsonb_build_object('batch', submit_many.batch_id IS NOT NULL)) THEN
        RETURN QUERY SELECT s.id, s.created FROM pgqueue.submit_each(submit_many.jobs, submit_many.batch_id) s;
        RETURN;
    END IF;

    BEGIN
    SELECT array_agg(ROW(
        nextval('pgqueue.jobs_id_seq'), pgqueue.due(r.delay, r.run_at), now(), NULL, NULL, NULL,
        'available', CASE WHEN r.priority BETWEEN 0 AND 9 THEN r.priority WHEN r.priority IS NULL THEN 5 END,  -- NULL is refused below
        0, CASE WHEN r.max_attempts >= 1 THEN r.max_attempts WHEN r.max_attempts IS NULL THEN 10 END, false, false, NULL, coalesce(r.queue, 'default'), r.task,
        coalesce(e.item -> 'payload', '{}'), r.timeout, r.unique_key, NULL, NULL, NULL, r.meta,
        r.group_key, NULL, NULL, submit_many.batch_id, NULL, NULL)::pgqueue.jobs ORDER BY e.nth)
    INTO given
    FROM jsonb_array_elements(submit_many.jobs) WITH ORDINALITY e(item, nth)
    CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority smallint, delay interval,
        run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb, group_key text);
    EXCEPTION WHEN data_exception THEN  -- a value is of the wrong kind: find its element
        FOR item IN SELECT e FROM jsonb_array_elements(submit_many.jobs) e LOOP
            BEGIN
                PERFORM FROM jsonb_to_record(item) AS r(task text, queue text, priority smallint, delay interval,
                    run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb, group_key text);
            EXCEPTION WHEN data_exception THEN
                RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('job %s: %s', index, SQLERRM);
            END;
            index := index + 1;
        END LOOP;
        RAISE;
    END;

    SELECT e.nth, r.*, e.item -> 'payload' AS payload INTO bad
    FROM unnest(given) WITH ORDINALITY AS g(id, run_at, created_at, started_at, lease_until, lease_token, state, priority,
        attempt, max_attempts, cancel_requested, has_followers, pending, queue, task, payload, timeout, unique_key, worker, progress,
        errors, meta, group_key, place, due_at, batch_id, depends_on, last_token, nth)
    CROSS JOIN LATERAL (SELECT submit_many.jobs -> (g.nth - 1)::integer AS item, g.nth) e
    CROSS JOIN LATERAL jsonb_to_record(e.item) AS r(task text, queue text, priority smallint, delay interval,
        run_at timestamptz, max_attempts smallint, timeout interval, unique_key text, meta jsonb, group_key text)
    WHERE pgqueue.acceptable(g.task, g.payload, g.queue, g.priority::integer, g.run_at, g.max_attempts::integer, g.timeout,
                             g.unique_key, g.meta) IS NOT TRUE
       OR char_length(g.group_key) NOT BETWEEN 1 AND 512
    LIMIT 1;
    IF FOUND THEN
        IF char_length(bad.group_key) NOT BETWEEN 1 AND 512 THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('job %s: group_key must have 1 to 512 characters', bad.nth - 1);
        END IF;
        PERFORM pgqueue.reject(bad.task, coalesce(bad.payload, '{}'), coalesce(bad.queue, 'default'), coalesce(bad.priority, 5::smallint)::integer,
            bad.delay, bad.run_at, coalesce(bad.max_attempts, 10::smallint)::integer, bad.timeout, bad.unique_key, bad.meta,
            format('job %s: ', bad.nth - 1));
    END IF;

    INSERT INTO pgqueue.jobs SELECT g.* FROM unnest(given) g WHERE g.unique_key IS NULL;
    LOOP
        INSERT INTO pgqueue.jobs SELECT g.* FROM unnest(given) g WHERE g.unique_key IS NOT NULL
        ORDER BY g.unique_key COLLATE "C", g.id  -- one order for everybody: two batches of the same keys wait, not deadlock
        ON CONFLICT (unique_key) WHERE unique_key IS NOT NULL DO NOTHING;
        SELECT array_agg(coalesce(held.id, CASE WHEN g.unique_key IS NULL THEN g.id END) ORDER BY g.nth),
               count(*) FILTER (WHERE g.unique_key IS NOT NULL AND held.id IS NULL)
        INTO ids, missing
        FROM (SELECT x.id, x.unique_key, x.nth FROM unnest(given) WITH ORDINALITY AS x(id, run_at, created_at, started_at,
            lease_until, lease_token, state, priority, attempt, max_attempts, cancel_requested, has_followers, pending, queue, task,
            payload, timeout, unique_key, worker, progress, errors, meta, group_key, place, due_at, batch_id, depends_on, last_token, nth)) g
        LEFT JOIN LATERAL (  -- one probe each, whatever the table was like when this was planned: a join would walk it
            SELECT j.id FROM pgqueue.jobs j WHERE j.unique_key = g.unique_key LIMIT 1
        ) held ON true;
        EXIT WHEN missing = 0;  -- else a holder finished between the two statements: its key is free, try again
    END LOOP;
    PERFORM pgqueue.ring(q.queue)
    FROM (SELECT DISTINCT g.queue FROM unnest(given) g WHERE g.run_at <= now() + interval '1 minute') q;
    fresh := ARRAY(SELECT g.id FROM unnest(given) g);
    RETURN QUERY SELECT i.id, i.id = i.own FROM unnest(ids, fresh) WITH ORDINALITY AS i(id, own, nth) ORDER BY i.nth;
END $function$;
-- pgqueue.submit_many(jsonb,bigint)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_producer
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.submit_one(task text, payload jsonb DEFAULT '{}'::jsonb, queue text DEFAULT 'default'::text, priority integer DEFAULT 5, delay interval DEFAULT NULL::interval, run_at timestamp with time zone DEFAULT NULL::timestamp with time zone, max_attempts integer DEFAULT 10, timeout interval DEFAULT NULL::interval, unique_key text DEFAULT NULL::text, meta jsonb DEFAULT NULL::jsonb, group_key text DEFAULT NULL::text, unique_for interval DEFAULT NULL::interval, on_conflict text DEFAULT 'skip'::text, depends_on bigint[] DEFAULT NULL::bigint[], on_dead text DEFAULT 'cancel'::text, batch_id bigint DEFAULT NULL::bigint, many boolean DEFAULT false, siblings bigint[] DEFAULT NULL::bigint[], OUT id bigint, OUT created boolean)
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_variable
DECLARE
    due timestamptz := pgqueue.due(delay, run_at);
    unmet bigint[];
    failed bigint[];
    holder record;
BEGIN
    IF pgqueue.acceptable(task, payload, queue, priority, due, max_attempts, timeout, unique_key, meta) IS NOT TRUE THEN
        PERFORM pgqueue.reject(task, payload, queue, priority, delay, run_at, max_attempts, timeout, unique_key, meta);
    END IF;
    PERFORM pgqueue.check_options(unique_key, unique_for, on_conflict, group_key, depends_on, on_dead);
    IF cardinality(depends_on) > 0 THEN
        SELECT u.waiting || u.failed, u.failed INTO unmet, failed FROM pgqueue.unmet(depends_on, on_dead, strict => true) u;
    END IF;
    IF batch_id IS NOT NULL THEN
        IF NOT many THEN
            PERFORM pgqueue.grow_batch(batch_id, 1);
        END IF;
        IF unmet <> '{}' THEN
            PERFORM pgqueue.refuse_cycle(batch_id, unmet);
        END IF;
    END IF;
    IF siblings <> '{}' THEN
        IF cardinality(siblings) + coalesce(cardinality(depends_on), 0) > 100 THEN
            PERFORM pgqueue.check_options(NULL, NULL, 'skip', NULL, coalesce(depends_on, '{}') || siblings, 'cancel');
        END IF;
        unmet := coalesce(unmet, '{}') || siblings;
        depends_on := coalesce(depends_on, '{}') || siblings;
    END IF;
    created := true;
    LOOP
        INSERT INTO pgqueue.jobs AS j (task, payload, queue, priority, run_at, due_at, state, pending, max_attempts, timeout, meta,
            unique_key, group_key, batch_id, depends_on, has_followers)
        VALUES (task, payload, queue, priority,
            CASE WHEN unmet <> '{}' THEN 'infinity' ELSE due END, CASE WHEN unmet <> '{}' THEN due END,
            CASE WHEN unmet <> '{}' THEN 'blocked' ELSE 'available' END::pgqueue.job_state, nullif(cardinality(unmet), 0),
            max_attempts, timeout, meta, unique_key, group_key, batch_id, nullif(depends_on, '{}'), many)
        ON CONFLICT DO NOTHING
        RETURNING j.id INTO id;
        IF id IS NOT NULL AND unique_for IS NOT NULL THEN
            INSERT INTO pgqueue.throttles AS t VALUES (unique_key, id, '-infinity', clock_timestamp() + unique_for)
            ON CONFLICT ON CONSTRAINT throttles_pkey DO UPDATE SET job_id = excluded.job_id, since = excluded.since, until = excluded.until
            WHERE t.until <= clock_timestamp();
            IF NOT FOUND THEN  -- an earlier job of this period has ended, and the key is still held
                SELECT t.job_id, t.until INTO holder FROM pgqueue.throttles t WHERE t.unique_key = submit_one.unique_key;
                IF on_conflict = 'replace' THEN
                    UPDATE pgqueue.jobs j SET run_at = greatest(j.run_at, holder.until), due_at = greatest(j.due_at, holder.until)
                    WHERE j.id = submit_one.id;
                    due := greatest(due, holder.until);
                    UPDATE pgqueue.throttles t SET job_id = submit_one.id, since = holder.until, until = holder.until + unique_for
                    WHERE t.unique_key = submit_one.unique_key;
                ELSE
                    DELETE FROM pgqueue.jobs j WHERE j.id = submit_one.id;
                    id := holder.job_id;
                    created := false;
                END IF;
            END IF;
        END IF;
        EXIT WHEN id IS NOT NULL;
        IF on_conflict = 'replace' THEN
            SELECT greatest(due, t.since) AS due, t.job_id INTO holder FROM pgqueue.throttles t WHERE t.unique_key = submit_one.unique_key;
            UPDATE pgqueue.jobs j SET task = submit_one.task, payload = submit_one.payload, queue = submit_one.queue, priority = submit_one.priority,
                max_attempts = greatest(submit_one.max_attempts, j.attempt + 1), timeout = submit_one.timeout, meta = submit_one.meta,
                group_key = submit_one.group_key, place = CASE WHEN j.group_key = submit_one.group_key THEN j.place END,
                run_at = CASE WHEN j.state = 'blocked' THEN j.run_at WHEN j.id = holder.job_id THEN holder.due ELSE due END,
                due_at = CASE WHEN j.state <> 'blocked' THEN NULL WHEN j.id = holder.job_id THEN holder.due ELSE due END
            WHERE j.unique_key = submit_one.unique_key AND j.state <> 'running'
            RETURNING j.id INTO id;
            IF id IS NULL THEN
                UPDATE pgqueue.jobs j SET unique_key = NULL WHERE j.unique_key = submit_one.unique_key AND j.state = 'running';
            END IF;
        ELSE
            SELECT j.id INTO id FROM pgqueue.jobs j WHERE j.unique_key = submit_one.unique_key;
        END IF;
        created := id IS NULL;  -- NULL: the holder ended, or has just given up its key: try again
        EXIT WHEN id IS NOT NULL;
    END LOOP;
    IF NOT created THEN
        IF batch_id IS NOT NULL AND NOT many THEN  -- a job that was there before belongs to no new batch
            PERFORM pgqueue.grow_batch(batch_id, -1);
        END IF;
        IF on_conflict = 'raise' THEN
            RAISE EXCEPTION USING ERRCODE = 'unique_violation', DETAIL = id::text,
                MESSAGE = format('job %s holds the unique_key %L', id, unique_key);
        ELSIF on_conflict = 'skip' THEN
            RETURN;
        END IF;
    ELSIF unmet <> '{}' THEN
        INSERT INTO pgqueue.dependencies SELECT u, id, on_dead FROM unnest(unmet) u;
        IF failed <> '{}' AND on_dead = 'cancel' THEN  -- one that is dead already decides at once
            PERFORM pgqueue.resolve(failed);
        END IF;
    END IF;
    IF due <= now() + interval '1 minute' AND coalesce(unmet, '{}') = '{}' THEN
        PERFORM pgqueue.ring(queue);
    END IF;
END $function$;
-- pgqueue.submit_one(text,jsonb,text,integer,interval,timestamp with time zone,integer,interval,text,jsonb,text,interval,text,bigint[],text,bigint,boolean,bigint[])

CREATE OR REPLACE FUNCTION pgqueue.tick(plans jsonb, looked_at timestamp with time zone)
 RETURNS TABLE(schedule text, tick timestamp with time zone, job_id bigint)
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
#variable_conflict use_column
DECLARE
    plan record;
    due pgqueue.schedules;
    fired timestamptz;
    fired_id bigint;
BEGIN
    IF now() - looked_at > interval '5 seconds' THEN
        RETURN;
    END IF;
    FOR plan IN
        SELECT * FROM jsonb_to_recordset(plans)
            AS p(name text, expression text, time_zone text, due timestamptz, fire timestamptz[], next timestamptz)
        ORDER BY p.name COLLATE "C"
    LOOP
        SELECT s.* INTO due FROM pgqueue.schedules s
        WHERE s.name = plan.name AND s.next_tick IS NOT DISTINCT FROM plan.due AND NOT s.paused
          AND s.expression = plan.expression AND s.time_zone = plan.time_zone
          AND (SELECT bool_and(f <= now()) FROM unnest(plan.fire) f) IS NOT FALSE AND plan.next IS NOT NULL
        FOR NO KEY UPDATE SKIP LOCKED;
        CONTINUE WHEN NOT FOUND;
        schedule := due.name;
        fired := due.last_tick;
        fired_id := due.last_job_id;
        FOREACH tick IN ARRAY coalesce(nullif(plan.fire, '{}'), ARRAY[NULL::timestamptz]) LOOP
            CONTINUE WHEN due.misfire = 'skip' AND tick < now() - due.grace;  -- it has become too late since
            job_id := pgqueue.fire(due, tick, coalesce(due.unique_key, CASE WHEN due.overlap = 'skip' THEN 'schedule:' || due.name END), '{}');
            IF job_id IS NOT NULL THEN
                fired := tick;
                fired_id := job_id;
            END IF;
            RETURN NEXT;
        END LOOP;
        UPDATE pgqueue.schedules s SET next_tick = plan.next, last_tick = fired, last_job_id = fired_id WHERE s.name = due.name;
    END LOOP;
END $function$;
-- pgqueue.tick(jsonb,timestamp with time zone)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.tidy()
 RETURNS void
 LANGUAGE plpgsql
 SECURITY DEFINER
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF pg_try_advisory_xact_lock(hashtextextended('pgqueue.tidy', 0)) THEN
        PERFORM pgqueue.resolve(ARRAY(
            SELECT DISTINCT d.upstream_id FROM pgqueue.dependencies d
            WHERE NOT EXISTS (SELECT FROM pgqueue.jobs j WHERE j.id = d.upstream_id)));
        DELETE FROM pgqueue.batches b
        WHERE coalesce(b.finished_at, CASE WHEN b.total = 0 THEN b.created_at END) < now() - (SELECT max(r.keep) + interval '1 day' FROM pgqueue.retention r);
        DELETE FROM pgqueue.tokens t
        WHERE least(t.revoked_at, t.expires_at) < now() - interval '30 days'
          AND t.id < (SELECT max(x.id) FROM pgqueue.tokens x);  -- one stays: that there was a token is why the API asks for one
        DELETE FROM pgqueue.throttles t WHERE t.until < now();
        DELETE FROM pgqueue.buckets b USING pgqueue.queues q
        WHERE b.group_key <> '' AND q.name = b.queue AND b.filled_at < now() - interval '1 hour'
          AND (q.key_rate IS NULL OR pgqueue.tokens_now(b.tokens, b.filled_at, q.key_rate, coalesce(q.key_burst, 1)) >= coalesce(q.key_burst, 1));
    END IF;
END $function$;
-- pgqueue.tidy()
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.tokens_now(tokens double precision, filled_at timestamp with time zone, rate double precision, burst integer, moment timestamp with time zone DEFAULT clock_timestamp())
 RETURNS double precision
 LANGUAGE sql
 STABLE PARALLEL SAFE
AS $function$
    SELECT least(burst, tokens + greatest(0, extract(epoch FROM moment - filled_at)::float8) * rate)
$function$;
-- pgqueue.tokens_now(double precision,timestamp with time zone,double precision,integer,timestamp with time zone)
    GRANT X TO pgqueue_admin
    GRANT X TO pgqueue_reader
    GRANT X TO pgqueue_worker

CREATE OR REPLACE FUNCTION pgqueue.unmet(depends_on bigint[], on_dead text, strict boolean, OUT waiting bigint[], OUT failed bigint[])
 RETURNS record
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
 SET plan_cache_mode TO 'force_generic_plan'
 SET jit TO 'off'
 SET enable_seqscan TO 'off'
AS $function$
#variable_conflict use_column
DECLARE
    absent bigint[] := ARRAY(SELECT DISTINCT u FROM unnest(unmet.depends_on) u WHERE u IS NOT NULL ORDER BY 1);
    live bigint[];
    blocked bigint[];
    open_batches bigint[];
    met bigint[];
    bad bigint[];
    round integer;
BEGIN
    waiting := '{}';
    failed := '{}';
    FOR round IN 1 .. 5 LOOP
        EXIT WHEN absent = '{}';
        live := ARRAY(SELECT j.id FROM pgqueue.jobs j WHERE j.id = ANY (absent) AND j.state <> 'blocked' ORDER BY j.id FOR NO KEY UPDATE);
        blocked := ARRAY(SELECT j.id FROM pgqueue.jobs j WHERE j.id = ANY (absent) AND j.state = 'blocked');
        met := '{}';
        bad := '{}';
        open_batches := '{}';
        IF cardinality(live) + cardinality(blocked) < cardinality(absent) THEN
            bad := ARRAY(SELECT h.id FROM pgqueue.history h
                         WHERE h.id = ANY (absent) AND h.state IN ('dead', 'cancelled') ORDER BY h.id FOR KEY SHARE);
            met := ARRAY(SELECT h.id FROM pgqueue.history h WHERE h.id = ANY (absent) AND h.state = 'completed');
            WITH held AS MATERIALIZED (
                SELECT b.id, b.completed + b.dead + b.cancelled < b.total AS is_open, b.dead + b.cancelled > 0 AS is_bad
                FROM pgqueue.batches b WHERE b.id = ANY (absent) ORDER BY b.id FOR NO KEY UPDATE
            )
            SELECT coalesce(array_agg(b.id) FILTER (WHERE b.is_open), '{}'),
                   bad || coalesce(array_agg(b.id) FILTER (WHERE NOT b.is_open AND b.is_bad), '{}'),
                   met || coalesce(array_agg(b.id) FILTER (WHERE NOT b.is_open AND NOT b.is_bad), '{}')
            INTO open_batches, bad, met FROM held b;
        END IF;
        IF blocked <> '{}' THEN
            live := live || ARRAY(SELECT j.id FROM pgqueue.jobs j WHERE j.id = ANY (blocked) ORDER BY j.id FOR NO KEY UPDATE);
        END IF;
        UPDATE pgqueue.jobs j SET has_followers = true WHERE j.id = ANY (live) AND NOT j.has_followers;
        waiting := waiting || live || open_batches;
        IF on_dead <> 'continue' THEN
            failed := failed || bad;
        END IF;
        EXIT WHEN cardinality(live) = cardinality(absent);
        absent := ARRAY(SELECT u FROM unnest(absent) u EXCEPT SELECT s FROM unnest(live || open_batches || bad || met) s ORDER BY 1);
        IF absent <> '{}' AND round = 5 AND strict THEN
            RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = format('depends_on: there is no job or batch %s', absent[1]);
        END IF;
    END LOOP;
END $function$;
-- pgqueue.unmet(bigint[],text,boolean)

CREATE OR REPLACE FUNCTION pgqueue.wait_again(job_id bigint, upstream bigint[])
 RETURNS boolean
 LANGUAGE plpgsql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
BEGIN
    IF upstream IS NULL THEN
        RETURN false;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('pgqueue.cycles', 0));
    SELECT u.waiting || u.failed INTO upstream FROM pgqueue.unmet(upstream, 'hold', strict => false) u;
    IF upstream = '{}' OR pgqueue.waits_for(job_id, upstream) THEN
        RETURN false;
    END IF;
    UPDATE pgqueue.jobs j SET state = 'blocked', run_at = 'infinity', due_at = j.run_at, pending = cardinality(upstream)
    WHERE j.id = job_id;
    INSERT INTO pgqueue.dependencies SELECT u, job_id, 'hold' FROM unnest(upstream) u;
    RETURN true;
END $function$;
-- pgqueue.wait_again(bigint,bigint[])

CREATE OR REPLACE FUNCTION pgqueue.waits_for(target bigint, ids bigint[])
 RETURNS boolean
 LANGUAGE sql
 SET search_path TO 'pg_catalog', 'pg_temp'
AS $function$
    WITH RECURSIVE behind AS (
        SELECT target AS id
        UNION
        SELECT next.id FROM behind b CROSS JOIN LATERAL (
            (SELECT d.job_id AS id FROM pgqueue.dependencies d WHERE d.upstream_id = b.id OFFSET 0)
            UNION ALL (SELECT j.batch_id FROM pgqueue.jobs j WHERE j.id = b.id AND j.batch_id IS NOT NULL OFFSET 0)
        ) next
    )
    SELECT EXISTS (SELECT FROM behind b WHERE b.id = ANY (ids))
$function$;
-- pgqueue.waits_for(bigint,bigint[])

-- rows of pgqueue.retention: [('cancelled', '30 days'), ('completed', '7 days'), ('dead', '90 days')]
