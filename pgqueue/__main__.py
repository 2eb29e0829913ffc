"""``python -m pgqueue``: the command ``pgq``, under a name that no other package installs."""

import sys

from pgqueue.cli import main

if __name__ == "__main__":
    sys.exit(main())
