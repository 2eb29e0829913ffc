"""The engine's statements, one file each. A file says its contract, then one statement over names ``pgqueue.…``."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_COMMENT = re.compile(r"^\s*--.*$\n?", re.MULTILINE)
_PLACEHOLDER = re.compile(r"%%|%\((\w+)\)s(::jsonb\b(?!\[))?")
_PREFIX = re.compile(r"\bpgqueue\.")


@cache
def load(name: str, schema: str = "pgqueue") -> str:
    """The statement in ``name``.sql for a schema, without its comments (psycopg reads placeholders inside them)."""
    text = files(__package__).joinpath(f"{name}.sql").read_text(encoding="utf-8")
    return qualify(_COMMENT.sub("", text), schema).strip()


def qualify(sql: str, schema: str) -> str:
    """Put the schema's real name for the prefix ``pgqueue.``; a schema's name needs no quotes (see Settings)."""
    return sql if schema == "pgqueue" else _PREFIX.sub(f"{schema}.", sql)


@cache
def numbered(sql: str, *, json_as_text: bool = False) -> tuple[str, tuple[str, ...]]:
    """A statement with ``$1`` for psycopg's ``%(name)s``, as PostgreSQL itself wants it, and the names in that order.

    ``json_as_text``: for a driver that would else encode JSON in its own way.
    """
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        name, json = found.groups()
        if name is None:
            return "%"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}{'::text' if json and json_as_text else ''}{json or ''}"

    return _PLACEHOLDER.sub(number, sql), tuple(names)
