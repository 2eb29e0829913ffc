"""Write the pages that have one source of truth: ``make docs``, or ``python docs/generate.py [--check]``.

``cli.md`` comes from the typer app, ``errors.md`` from the docstrings in pgqueue.errors, ``glossary.md`` from the
table in this file. A test fails while a page differs from what this script would write.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.main import get_command

import pgqueue
from pgqueue import errors
from pgqueue.cli import app
from pgqueue.cli.errors import exit_code
from pgqueue.cli.help import told

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from {source}. Do not edit; run: make docs -->\n"

# One word per concept, the same in columns, parameters, flags and pages.
GLOSSARY: tuple[tuple[str, str, str], ...] = (
    ("job", "A row: one task to run once with one payload.", "table `jobs`, then `history`"),
    ("task", "A registered function, known by its name.", "column `task`, `@app.task`"),
    ("payload", "The JSON value that a job carries: the task's arguments. At most 1 MiB.", "column `payload`"),
    ("queue", "A name under which jobs wait. Workers serve queues.", "column `queue`, `--queue`"),
    ("enqueue", "Insert a job. It exists exactly when the transaction commits.", "`enqueue.sql`, `pgq enqueue`"),
    ("submit", "Enqueue, and say also whether the job is new (`created`).", "`submit.sql`, `Client.submit`"),
    (
        "`created`",
        "False: another job holds the `unique_key`, and the answer is that one.",
        "`Job.created`, `Submitted`",
    ),
    ("priority", "0 to 9. A lower number runs first. high is 2, normal is 5, low is 8.", "column `priority`"),
    ("`run_at`", "The time from which a job may run. A later time makes it scheduled.", "column `run_at`"),
    ("`delay`", "The same, as a distance from the start of the transaction.", "option `delay`"),
    ("worker", "A process that claims jobs and runs their handlers.", "`pgq worker`, table `workers`"),
    (
        "vitals",
        "What a worker says of itself: until when each of its loops may be silent, whether it is ready.",
        "`/livez`, `/readyz`, `--health-file`",
    ),
    ("slot", "Room for one running job in a worker.", "`--slots`"),
    ("batch handler", "A handler that takes the payloads of many jobs in one call.", "`@app.task(batch=…)`"),
    ("linger", "How long the first job of such a call may wait for others.", "`@app.task(linger=…)`"),
    ("resource", "What handlers share: started with the worker, given to them by its type.", "`@app.resource`"),
    ("middleware", "What lies around every run or every enqueue.", "`@app.around_run`, `@app.around_enqueue`"),
    ("handler", "The function of a task, while a worker runs it.", "`@app.task`"),
    ("claim", "Take due jobs under one new lease.", "`claim.sql`"),
    ("lease", "The right to run a batch of claimed jobs until `lease_until`.", "table `leases`"),
    ("`lease_until`", "When a lease expires if nobody renews it.", "columns of `jobs` and `leases`"),
    ("lease token", "A random number, new for each claim. Every write of a run carries it.", "column `lease_token`"),
    ("renew", "Move `lease_until` further while a job still runs.", "`renew.sql`"),
    ("attempt", "How many times a job was claimed. Snooze and release give it back.", "column `attempt`"),
    ("`max_attempts`", "How many attempts a job has, the first included.", "column `max_attempts`"),
    (
        "pass",
        "A verdict: failed, and at the end of its line until its retry.",
        "`group_retry`, verdict in `finish.sql`",
    ),
    ("suspect", "A job that may be what killed its last workers: it runs in a child process.", "`claim.sql`"),
    ("finish", "Write how runs ended, many at once.", "`finish.sql`"),
    ("backoff", "The wait after a failed attempt: 2, 4, 8, 16 s and so on.", "`Exponential`, `Fixed`, `never`"),
    ("snooze", "Put a running job back for a while, without blame.", "`raise pgqueue.Snooze(…)`"),
    ("release", "Give a claimed job back, when a worker stops. The attempt is refunded.", "verdict in `finish.sql`"),
    ("sweep", "Recover the jobs of expired leases.", "`sweep.sql`"),
    ("history", "Finished jobs: completed, dead and cancelled.", "table `history`"),
    ("available", "State: waits, and may be claimed once `run_at` has come.", "column `state`"),
    ("scheduled", "Shown for an available job whose `run_at` is in the future.", "view `all_jobs`"),
    ("retrying", "Shown for a scheduled job with an attempt behind it.", "view `all_jobs`"),
    ("blocked", "State: waits for what it depends on.", "column `state`"),
    ("running", "State: claimed under a lease.", "column `state`"),
    ("completed", "State: its handler returned.", "column `state`"),
    ("dead", "State: it failed and will not be tried again. Also called a dead letter.", "column `state`, `pgq dead`"),
    ("cancelled", "State: taken back.", "column `state`"),
    ("cancel", "Take a job back. A running one is asked to stop.", "`cancel.sql`, `pgq job cancel`"),
    ("retry", "An operator's verb: run an ended or waiting job again, now.", "`retry.sql`, `pgq job retry`"),
    ("redrive", "Retry many dead jobs.", "`redrive.sql`, `pgq dead redrive`"),
    (
        "`depends_on`",
        "Jobs or batches that have to end before this job may run.",
        "column `depends_on`, table `dependencies`",
    ),
    ("upstream, follower", "A job that another one depends on; that other one.", "`list_upstream.sql`, `pgq job tree`"),
    ("`on_dead`", "What it means for a follower that its upstream dies: cancel, continue or hold.", "column `on_dead`"),
    ("workflow", "Jobs that are enqueued together, each after those it depends on.", "`app.workflow()`, `app.chain()`"),
    ("batch", "The jobs of a workflow, counted together.", "table `batches`, `app.batch()`, `pgq batch`"),
    ("settle", "Tell batches and followers, in the statement that ends a job.", "function `pgqueue.settle`"),
    ("pause, resume", "Stop and restart claiming from a queue.", "`pause.sql`, `resume.sql`, `pgq queue`"),
    ("purge", "Delete waiting or dead jobs for good.", "`purge.sql`, `purge_dead.sql`"),
    ("retention", "How long each outcome stays in history.", "table `retention`, `pgq queue retention`"),
    ("tidy", "Forget what has run out: throttles, full buckets, old batches and tokens.", "`tidy.sql`"),
    ("prune", "Make the partitions of the next days and drop those past their retention.", "`prune.sql`"),
    ("`unique_key`", "At most one live job has this key.", "column `unique_key`"),
    (
        "`unique_for`",
        "How long the key is held, even when its job ends before.",
        "option `unique_for`, table `throttles`",
    ),
    ("`on_conflict`", "What to do when the key is held: skip, replace or raise.", "option `on_conflict`"),
    ("throttle", "A key that is held for a period.", "table `throttles`"),
    ("`group_key`", "Jobs of a queue with this key run one at a time, in order.", "column `group_key`"),
    ("line", "The waiting jobs of one `group_key`, in their order.", "column `place`"),
    (
        "limit",
        "What holds a queue back: how many at once, how many starts per second.",
        "table `queues`, `pgq queue limit`",
    ),
    ("`max_running`", "Jobs of a queue that run at the same time, on all workers.", "column `max_running`"),
    ("rate, burst", "Starts per second; how many at once after a pause.", "columns `rate`, `burst`"),
    ("bucket", "Where the starts that a rate allows are counted.", "table `buckets`"),
    ("ageing", "How much waiting is worth one step of priority.", "column `ageing`"),
    ("schedule", "A row that makes a job at certain times.", "table `schedules`, `pgq schedule`"),
    ("tick", "One such time. It has one job, or none where a policy says so.", "table `ticks`, `tick.sql`, `job.tick`"),
    ("misfire", "What is done about ticks that came while no worker was there.", "column `misfire`"),
    ("grace", "How late a tick may be and still count as on time.", "column `grace`"),
    (
        "declare",
        "Say in code that a task has a schedule. A worker writes it.",
        "`@app.schedule`, `declare_schedules.sql`",
    ),
    ("overlap", "Whether a tick fires while the job of an earlier one is live.", "column `overlap`"),
    ("backfill", "Enqueue the ticks of the past that have not fired.", "`backfill.sql`, `pgq schedule backfill`"),
    ("lane", "The jobs of one queue and one priority, in the order in which they are claimed.", "`claim.sql`"),
    ("mark", "Where a worker's next claim begins to look in a lane. In memory only.", "`worker/marks.py`"),
    ("token", "What a client of the HTTP API shows: it has a name, scopes and queues.", "table `tokens`, `pgq token`"),
    ("secret", "What the holder of a token has. The database has its hash.", "column `hash`, `find_token.sql`"),
    ("scope", "What a token may do: enqueue, work, read, admin.", "column `scopes`, `--scope`"),
    ("glob", "A pattern of queues' names; `*` and `?` are special.", "column `queues`, `--queue`"),
    (
        "revoke",
        "Take the hash of a token away, so that it is refused from then on.",
        "`revoke_token.sql`, `pgq token revoke`",
    ),
    ("wire", "How our own async connections run a statement: past psycopg's cursor.", "`wire.py`"),
    ("tag", "A text in the list `tags` of a job's meta; lists are narrowed by it.", "`?tag=`, `pgq job list --tag`"),
    ("bell", "How an enqueue wakes an idle worker: an advisory lock and NOTIFY.", "`worker/bell.py`"),
)


def pages() -> dict[Path, str]:
    """Every generated page and its text."""
    return {
        HERE / "cli.md": "".join(_cli()),
        HERE / "errors.md": "".join(_errors()),
        HERE / "glossary.md": "".join(_glossary()),
    }


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` say which are out of date."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        if "--check" in arguments:
            sys.stderr.write(f"{path.name} is out of date; run: make docs\n")
        else:
            path.write_text(pages()[path], encoding="utf-8")
            sys.stdout.write(f"wrote {path.name}\n")
    return 1 if stale and "--check" in arguments else 0


# -- glossary --------------------------------------------------------------------------------------------------------


def _glossary() -> Iterator[str]:
    yield "# Glossary\n\n" + NOTE.format(source="its own table")
    yield "\nOne word per concept. The same word is used in columns, parameters, flags and pages.\n\n"
    yield "| word | meaning | where |\n|---|---|---|\n"
    for word, meaning, where in GLOSSARY:
        yield f"| {word} | {meaning} | {where} |\n"


# -- errors ----------------------------------------------------------------------------------------------------------


def _errors() -> Iterator[str]:
    yield "# Errors\n\n" + NOTE.format(source="pgqueue/errors.py")
    yield (
        "\nEvery error is a `pgqueue.PgqueueError`. The message says what happened and names the remedy.\n"
        "The last column is the exit code of `pgq` when a command ends with this error.\n\n"
        "| error | is also a | meaning | exit code |\n|---|---|---|---:|\n"
    )
    for error in _public(errors.PgqueueError):
        bases = ", ".join(f"`{base.__name__}`" for base in error.__bases__ if base is not Exception) or "`Exception`"
        yield f"| `{error.__name__}` | {bases} | {_prose(error)} | {exit_code(_empty(error))} |\n"
    yield (
        "\n## What a handler may raise\n\n"
        "These are no errors. A handler raises one to end its run in another way than return or failure.\n\n"
        "| class | meaning |\n|---|---|\n"
    )
    for verb in _public(errors.Interruption):
        call = inspect.signature(verb.__init__)
        parameters = ", ".join(str(p).split(":")[0] for p in list(call.parameters.values())[1:])
        yield f"| `{verb.__name__}({parameters})` | {_prose(verb)} |\n"
    yield (
        "\n## SQLSTATEs of the SQL functions\n\n"
        "| SQLSTATE | when | in Python |\n|---|---|---|\n"
        "| `22023` | an argument has no meaning; the message names it | `InvalidJobError` |\n"
        "| `54000` | the payload is over 1 MiB | `InvalidPayloadError` |\n"
        "| `42501` | the role may not do this | `DatabaseError` |\n"
    )


def _public(root: type[BaseException]) -> list[type[BaseException]]:
    found = [getattr(pgqueue, name) for name in pgqueue.__all__ if name != "migrate"]
    kinds = [kind for kind in found if isinstance(kind, type) and issubclass(kind, root)]
    order = list(vars(errors))
    return sorted(kinds, key=lambda kind: order.index(kind.__name__))


def _empty(error: type[BaseException]) -> BaseException:
    return error.__new__(error)


def _prose(thing: Any) -> str:
    """A docstring as one line of Markdown."""
    text = " ".join((inspect.getdoc(thing) or "").split())
    text = re.sub(r":\w+:`~?(?:pgqueue\.)?([\w.]+)`", r"`\1`", text)
    return text.replace("``", "`").replace("|", "\\|")


# -- command line ----------------------------------------------------------------------------------------------------


def _cli() -> Iterator[str]:
    root = get_command(app)
    yield "# Command line\n\n" + NOTE.format(source="the typer app")
    yield (
        "\n`pgq`, `pgqueue` and `python -m pgqueue` are the same command. Durations are written `30s`, `5m`, `1h30m` "
        "or `2d`.\n\n"
        f"{_prose_text(root.epilog)}\n\n"
        "## Options of every command\n\nThey may stand before or after the command's name.\n\n"
    )
    shared = _shared(root)
    yield from _table([parameter for parameter in root.params if parameter.name in shared])
    yield "\n`pgq --version` prints the version. `-h` and `--help` print help.\n"
    for path, command in _commands(root, "pgq"):
        yield f"\n## {path}\n\n{_prose_text(command.help)}\n"
        own = [parameter for parameter in command.params if parameter.name not in shared]
        if not hasattr(command, "commands") or own or path == "pgq db":
            yield f"\n```\n{_usage(path, own, command)}\n```\n"
        if own:
            yield "\n"
            yield from _table(own)


def _shared(root: Any) -> set[str]:
    return {parameter.name for parameter in root.params} - {"version"}


def _commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, child in getattr(command, "commands", {}).items():
        yield f"{path} {name}", child
        yield from _commands(child, f"{path} {name}")


def _usage(path: str, own: list[Any], command: Any) -> str:
    arguments = [_argument(parameter) for parameter in own if _is_argument(parameter)]
    options = ["[OPTIONS]"]
    groups = ["[COMMAND]"] if hasattr(command, "commands") else []
    return " ".join([path, *options, *arguments, *groups])


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name.upper())
    return name if parameter.required else f"[{name}]"


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _table(parameters: list[Any]) -> Iterator[str]:
    yield "| argument or option | meaning |\n|---|---|\n"
    for parameter in sorted(parameters, key=lambda parameter: not _is_argument(parameter)):
        yield f"| {_spelling(parameter)} | {_prose_text(told(parameter))} |\n"


def _spelling(parameter: Any) -> str:
    if _is_argument(parameter):
        return f"`{_argument(parameter)}`"
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.upper()}".replace("|", "\\|")
    return ", ".join(f"`{name}{value}`" for name in parameter.opts)


def _prose_text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("{}", "`{}`")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
