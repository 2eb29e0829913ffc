"""Create the schema: jobs, leases, history, queues, workers, the functions and the roles."""

from pathlib import Path

from pgqueue.migrations import execute_file, execute_sql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    for room in sorted(Path(__file__).with_suffix("").glob("*.sql")):
        execute_file(room)


def downgrade() -> None:
    execute_sql("""
        DROP FUNCTION pgqueue.autoscale;
        DROP FUNCTION pgqueue.find_token, pgqueue.has_tokens;
        DROP TABLE pgqueue.tokens;
        DROP FUNCTION pgqueue.tick, pgqueue.fire, pgqueue.backfill, pgqueue.declare_schedules, pgqueue.pause_schedule,
            pgqueue.resume_schedule, pgqueue.remove_schedule, pgqueue.forget_ticks;
        DROP TABLE pgqueue.ticks, pgqueue.schedules;
        DROP FUNCTION pgqueue.on_schedule_edit;
        DROP FUNCTION pgqueue.bell_key, pgqueue.ring, pgqueue.fits, pgqueue.acceptable, pgqueue.due, pgqueue.reject,
            pgqueue.refuse_options, pgqueue.enqueue_together, pgqueue.check_options,
            pgqueue.submit, pgqueue.submit_one, pgqueue.submit_many, pgqueue.submit_each,
            pgqueue.create_batch, pgqueue.enqueue, pgqueue.enqueue_many, pgqueue.tokens_now, pgqueue.limit_queue,
            pgqueue.claim_managed, pgqueue.pick_lanes, pgqueue.pick_lines, pgqueue.starters, pgqueue.key_tokens,
            pgqueue.unmet, pgqueue.lock_upstream, pgqueue.grow_batch, pgqueue.waits_for, pgqueue.refuse_cycle,
            pgqueue.wait_again, pgqueue.related, pgqueue.resolve, pgqueue.count_ended, pgqueue.settle, pgqueue.tidy,
            pgqueue.cancel_batch, pgqueue.cancel, pgqueue.retry,
            pgqueue.redrive_ids, pgqueue.redrive, pgqueue.purge, pgqueue.purge_dead,
            pgqueue.pause, pgqueue.resume, pgqueue.prune;
        DROP VIEW pgqueue.all_jobs, pgqueue.queue_stats;
        DROP TABLE pgqueue.jobs, pgqueue.history, pgqueue.leases, pgqueue.retention, pgqueue.queues, pgqueue.workers,
            pgqueue.buckets, pgqueue.throttles, pgqueue.batches, pgqueue.dependencies;
        DROP TYPE pgqueue.job_state;
        DROP DOMAIN pgqueue.priority, pgqueue.attempts, pgqueue.max_attempts;
    """)
