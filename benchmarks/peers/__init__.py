"""pgqueue beside other PostgreSQL queues: ``python -m benchmarks.peers``, one run, one server, the same work."""
