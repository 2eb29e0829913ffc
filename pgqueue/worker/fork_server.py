"""Imported by the process that children are forked from, first of all, and nowhere else.

SIGTERM to the whole process group (systemd, ``kill -TERM -PGID``) must not end it: with it, the parent would lose sight
of every child. It ends by itself when the worker has ended, whose pipe it watches.
"""

import signal

signal.signal(signal.SIGTERM, lambda *_: None)  # not SIG_IGN, which children would inherit
