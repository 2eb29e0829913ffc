"""${message}"""

from pathlib import Path

from pgqueue.migrations import execute_file

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    execute_file(Path(__file__).with_suffix(".sql"))


def downgrade() -> None:
    ${downgrades if downgrades else "raise NotImplementedError"}
