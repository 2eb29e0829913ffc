"""Settings: a value given by hand, else ``PGQUEUE_…`` in the environment, else the plain name, else the default."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from pgqueue.durations import parse_duration
from pgqueue.errors import InvalidJobError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,47}")
_PLAIN_NAMES = {
    "lease_duration", "lease_check_interval", "poll_interval", "slots", "shutdown_timeout", "log_format", "port",
    "metrics_port", "metrics_host",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the queue is and how its workers behave. The defaults are the fast ones.

    Attributes:
        dsn: PostgreSQL connection string or URI; several hosts allowed. None: the embedded server.
        listen_dsn: a connection past a pooler, for LISTEN. None: the same as ``dsn``.
        schema: the schema that holds this queue; several independent queues fit in one database.
        lease_duration: how long a claimed job is held without a renewal.
        lease_check_interval: how often a worker looks for expired leases.
        poll_interval: the longest sleep of an idle worker that NOTIFY does not reach; one that it reaches sleeps up to
            five times as long.
        slots: jobs that one worker process runs at the same time.
        shutdown_timeout: how long a stopping worker waits for running jobs.
        log_format: ``text`` or ``json``.
        metrics_port: a worker serves metrics and probes here; None: it does not, 0: on any free port.
        metrics_host: the address that it listens on. Whoever scrapes and probes mostly comes from another machine.
    """

    dsn: str | None = None
    listen_dsn: str | None = None
    schema: str = "pgqueue"
    lease_duration: timedelta = timedelta(seconds=30)
    lease_check_interval: timedelta = timedelta(seconds=5)
    poll_interval: timedelta = timedelta(seconds=1)
    slots: int = 50
    shutdown_timeout: timedelta = timedelta(seconds=30)
    log_format: str = "text"
    metrics_port: int | None = None
    metrics_host: str = "0.0.0.0"  # noqa: S104 - only with a port, and it tells names and numbers, no payloads

    def __post_init__(self) -> None:
        if not _SCHEMA_NAME.fullmatch(self.schema):
            raise SettingsError(f"schema {self.schema!r} must be a plain lower-case name of up to 48 characters")
        for name, least, most in (
            ("lease_duration", 1, 86_400), ("lease_check_interval", 0.05, 3_600), ("poll_interval", 0.01, 60)
        ):  # fmt: skip
            if not least <= getattr(self, name).total_seconds() <= most:
                raise SettingsError(f"{name} must be {least:g} to {most:g} seconds")
        if not 1 <= self.slots <= 10_000:  # noqa: PLR2004
            raise SettingsError(f"slots must be 1 to 10000, not {self.slots}")
        if self.metrics_port is not None and not 0 <= self.metrics_port <= 65_535:  # noqa: PLR2004
            raise SettingsError(f"metrics_port must be 0 to 65535, not {self.metrics_port}")
        if self.log_format not in {"text", "json"}:
            raise SettingsError(f"log_format must be text or json, not {self.log_format!r}")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **given: Any) -> Self:
        """Read the environment; values ``given`` that are not None win.

        Raises:
            SettingsError: a value has no meaning; the message names the variable.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in fields(cls):
            source, raw = field.name, given.get(field.name)
            if raw is None:
                source, raw = from_environment(field.name, env)
            if raw is not None:
                values[field.name] = _convert(field.name, source, raw)
        return cls(**values)

    def resolve_dsn(self) -> str:
        """The DSN, starting or joining the embedded server when none is set.

        Raises:
            EmbeddedServerError: no DSN, and the embedded server could not be started.
        """
        if self.dsn:
            return self.dsn
        from pgqueue.embedded import embedded_dsn  # noqa: PLC0415 - only who needs it pays for it

        return embedded_dsn()


def from_environment(name: str, env: Mapping[str, str]) -> tuple[str, str | None]:
    """The variable that says a setting, and its value; (the setting's name, None) when none does."""
    names = [f"PGQUEUE_{name.upper()}"]
    if name == "dsn":
        names.append("DATABASE_URL")
    if name in _PLAIN_NAMES:
        names.append(name.upper())
    return next(((n, env[n]) for n in names if env.get(n)), (name, None))


def _convert(name: str, source: str, raw: Any) -> Any:
    try:
        if name.endswith(("_duration", "_interval", "_timeout")):
            return parse_duration(raw, source)
        if name in {"slots", "metrics_port"}:
            return int(raw)
    except InvalidJobError as error:
        raise SettingsError(str(error)) from None
    except ValueError:
        raise SettingsError(f"{source} must be a whole number, not {raw!r}") from None
    if name.endswith("dsn"):
        return _plain_libpq(str(raw))
    return str(raw)


def _plain_libpq(dsn: str) -> str:
    """SQLAlchemy's ``postgresql+driver://`` is a URL that libpq takes without the driver."""
    return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"postgresql://", dsn)
