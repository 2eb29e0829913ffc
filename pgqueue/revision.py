"""Which revision a database is at, and which this pgqueue needs: asked at every start, so without alembic's weight."""

from __future__ import annotations

from pathlib import Path

import psycopg

from pgqueue.connection import connection_string, translate
from pgqueue.errors import SchemaError


def scripts() -> Path:
    """Alembic's folder: inside the installed package, else at the top of the checkout."""
    package = Path(__file__).parent
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "alembic"


def head_revision() -> str:
    """The revision that this pgqueue works with: a migration's file name begins with its number."""
    return max(path.name.partition("_")[0] for path in (scripts() / "versions").glob("[0-9]*_*.py"))


def current_revision(dsn: str, *, schema: str = "pgqueue") -> str | None:
    """The revision that the database is at; None when it was never migrated.

    Raises:
        DatabaseUnreachableError: no connection.
        DatabaseError: the role may not read the version table.
    """
    try:
        with psycopg.connect(connection_string(dsn), autocommit=True) as connection:
            row = connection.execute(f'SELECT version_num FROM "{schema}".alembic_version').fetchone()
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
        return None
    except psycopg.Error as error:
        raise translate(error) from error
    return str(row[0]) if row else None


def check_schema(dsn: str, *, schema: str = "pgqueue") -> None:
    """Make sure that the database is at the revision that this pgqueue works with.

    Raises:
        SchemaError: it is missing, older or newer; the message says what to run.
        DatabaseUnreachableError: no connection.
    """
    require_head(current_revision(dsn, schema=schema), schema)


def require_head(current: str | None, schema: str) -> None:
    """Compare a revision with the one that this pgqueue works with; raises SchemaError when they differ."""
    head = head_revision()
    if current == head:
        return
    if current is None:
        raise SchemaError(f"the database has no schema {schema!r} of pgqueue; run: pgq migrate")
    if current < head:
        raise SchemaError(f"the schema is at {current}, this pgqueue needs {head}; run: pgq migrate")
    raise SchemaError(f"the schema is at {current}, newer than this pgqueue ({head}); upgrade the package")
