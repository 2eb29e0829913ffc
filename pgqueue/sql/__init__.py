"""The engine's statements, one file each. A file says its contract, then one statement over names ``pgqueue.…``."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_COMMENT = re.compile(r"^\s*--.*$\n?", re.MULTILINE)
_PREFIX = re.compile(r"\bpgqueue\.")


@cache
def load(name: str, schema: str = "pgqueue") -> str:
    """The statement in ``name``.sql for a schema, without its comments (psycopg reads placeholders inside them)."""
    text = files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
    return qualify(_COMMENT.sub("", text), schema).strip()


def qualify(sql: str, schema: str) -> str:
    """Put the schema's real name for the prefix ``pgqueue.``; a schema's name needs no quotes (see Settings)."""
    return sql if schema == "pgqueue" else _PREFIX.sub(f"{schema}.", sql)
