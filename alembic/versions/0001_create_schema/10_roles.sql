-- Roles, least privilege, nothing for PUBLIC. They belong to the whole cluster, so they outlive a downgrade.
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['pgqueue_producer', 'pgqueue_worker', 'pgqueue_reader', 'pgqueue_admin'] LOOP
        BEGIN
            IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            END IF;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- another migration made it between the look and the act
        END;
    END LOOP;
END $$;
REVOKE ALL ON ALL TABLES IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA pgqueue FROM PUBLIC;
REVOKE ALL ON SCHEMA pgqueue FROM PUBLIC;
GRANT USAGE ON SCHEMA pgqueue TO pgqueue_producer, pgqueue_worker, pgqueue_reader, pgqueue_admin;
-- The producer: enqueue, and nothing else.
GRANT EXECUTE ON FUNCTION pgqueue.enqueue, pgqueue.enqueue_together, pgqueue.enqueue_many, pgqueue.submit, pgqueue.submit_many, pgqueue.create_batch
    TO pgqueue_producer, pgqueue_worker, pgqueue_admin;
GRANT SELECT ON pgqueue.alembic_version TO pgqueue_producer;
-- The reader: every table and view, no verb.
GRANT SELECT ON ALL TABLES IN SCHEMA pgqueue TO pgqueue_reader, pgqueue_worker, pgqueue_admin;
GRANT EXECUTE ON FUNCTION pgqueue.tokens_now TO pgqueue_reader, pgqueue_worker, pgqueue_admin;
GRANT EXECUTE ON FUNCTION pgqueue.related(bigint) TO pgqueue_reader, pgqueue_worker, pgqueue_admin;
-- The worker: the engine's own statements.
GRANT INSERT, UPDATE, DELETE ON pgqueue.jobs, pgqueue.leases, pgqueue.workers TO pgqueue_worker, pgqueue_admin;
GRANT INSERT ON pgqueue.history TO pgqueue_worker, pgqueue_admin;
GRANT EXECUTE ON FUNCTION pgqueue.bell_key(text), pgqueue.ring(text, boolean), pgqueue.prune(integer),
    pgqueue.claim_managed, pgqueue.settle, pgqueue.tidy,
    pgqueue.tick, pgqueue.declare_schedules, pgqueue.forget_ticks TO pgqueue_worker, pgqueue_admin;
GRANT USAGE ON SEQUENCE pgqueue.jobs_id_seq TO pgqueue_worker, pgqueue_admin;
-- The admin: every verb.
GRANT UPDATE ON pgqueue.retention TO pgqueue_admin;
GRANT INSERT, UPDATE, DELETE ON pgqueue.schedules TO pgqueue_admin;
GRANT EXECUTE ON FUNCTION
    pgqueue.cancel(bigint), pgqueue.retry(bigint), pgqueue.redrive(text, text, integer), pgqueue.purge(text), pgqueue.purge_dead(text),
    pgqueue.pause(text), pgqueue.resume(text), pgqueue.limit_queue(text, jsonb), pgqueue.cancel_batch(bigint),
    pgqueue.backfill, pgqueue.pause_schedule, pgqueue.resume_schedule, pgqueue.remove_schedule
    TO pgqueue_admin;

-- The first days of history; last, because a partition has no grants of its own.
SELECT pgqueue.prune();
