"""Benchmarks: ``python -m benchmarks`` measures pgqueue beside the bare-SQL floors, in one run, on one server."""
