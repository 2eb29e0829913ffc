"""Other libraries' connections, one file each, named after the package that the connection comes from.

A file has ``run(connection, statement)`` and ``run_async(connection, statement)``; both run the statement in
the transaction that the caller is in, and leave commit and rollback to the caller.
"""
