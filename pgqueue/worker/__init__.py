"""The worker: claims ahead, runs handlers in slots, finishes behind, and keeps its leases alive."""

from pgqueue.worker.supervisor import run_worker, supervise
from pgqueue.worker.worker import Worker

__all__ = ["Worker", "run_worker", "supervise"]
