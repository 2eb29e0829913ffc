"""Create the schema: jobs, leases, history, queues, workers, the functions and the roles."""

from pathlib import Path

from pgqueue.migrations import execute_file, execute_sql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    execute_sql("""
        DROP FUNCTION pgqueue.bell_key, pgqueue.ring, pgqueue.fits, pgqueue.acceptable, pgqueue.due, pgqueue.reject,
            pgqueue.enqueue, pgqueue.enqueue_many, pgqueue.cancel, pgqueue.retry, pgqueue.redrive_ids,
            pgqueue.redrive, pgqueue.purge, pgqueue.purge_dead, pgqueue.pause, pgqueue.resume, pgqueue.prune;
        DROP VIEW pgqueue.all_jobs, pgqueue.queue_stats;
        DROP TABLE pgqueue.jobs, pgqueue.history, pgqueue.leases, pgqueue.retention, pgqueue.queues, pgqueue.workers;
        DROP TYPE pgqueue.job_state;
    """)
