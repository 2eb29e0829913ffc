"""The documentation is complete and true: names, options, settings, links, promises, and every example runs."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import re
import shlex
import sys
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from typer.main import get_command

import pgqueue
from pgqueue.cli import app as cli
from pgqueue.cli import errors as exit_codes
from pgqueue.durations import format_duration
from pgqueue.errors import PgqueueError

ROOT = Path(__file__).parent.parent
PROMISES = Path(__file__).with_name("promises.md")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")],
    key=lambda page: str(page.relative_to(ROOT)),
)
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
ARROWS = (
    "enqueue",
    "claim",
    "finish",
    "retry",
    "settle",
    "snooze",
    "release",
    "sweep",
    "cancel",
    "dead",
    "redrive",
    "prune",
    "purge",
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BEFORE = {"README.md": "CREATE TABLE users (email text PRIMARY KEY)"}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    mark: str
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def _blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("code")) + 1
            found.append(Block(page, line, match["mark"] or "", match["language"], match["code"]))
    return found


BLOCKS = _blocks()
PYTHON = [block for block in BLOCKS if block.language == "python"]
RUNNABLE = sorted({str(block.page.relative_to(ROOT)) for block in BLOCKS if block.mark == "runnable"})


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


# -- complete --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", pgqueue.__all__)
def test_every_public_name_is_documented(name):
    pages = [page for page in PAGES if page.name != "CHANGELOG.md"]
    assert any(re.search(rf"\b{name}\b", page.read_text(encoding="utf-8")) for page in pages)


def test_every_verb_of_the_client_is_documented():
    verbs = [name for name, _ in inspect.getmembers(pgqueue.Client, inspect.isfunction) if not name.startswith("_")]
    missing = [verb for verb in verbs if f"`{verb}`" not in read("docs/tasks.md")]
    assert not missing


@pytest.mark.parametrize("function", [pgqueue.App.task, pgqueue.JobSpec.make], ids=["task", "job"])
def test_every_option_of_a_task_and_of_a_job_is_documented(function):
    options = {"name", "queue", "priority", "max_attempts", "timeout", "retry", "retry_on", "isolation", "raw"}
    options |= {"batch", "linger"}
    if function == pgqueue.JobSpec.make:
        options = {name for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    missing = [name for name in options if f"`{name}`" not in read("docs/tasks.md")]
    assert not missing


def _commands(command: Any, path: str) -> list[tuple[str, Any]]:
    children = getattr(command, "commands", {}).items()
    return [(path, command), *(pair for name, child in children for pair in _commands(child, f"{path} {name}"))]


COMMANDS = dict(_commands(get_command(cli), "pgq"))


@pytest.mark.parametrize("path", list(COMMANDS)[1:])
def test_every_command_and_option_is_documented(path):
    page = read("docs/cli.md")
    own = section(page, path)
    shared = section(page, "Options of every command")
    for parameter in COMMANDS[path].params:
        for spelling in parameter.opts if parameter.param_type_name == "option" else [f"`{parameter.metavar}`"]:
            assert spelling in own or spelling.strip("`") in own or spelling in shared, spelling


def test_every_setting_is_documented_with_its_names_and_default():
    rows = {}
    for line in section(read("README.md"), "Settings").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and "PGQUEUE_" in cells[1]:
            rows[cells[1].split("`")[1]] = cells
    settings = {f"PGQUEUE_{field.name.upper()}": field for field in fields(pgqueue.Settings)}
    assert set(rows) == set(settings)
    flags = {option for command in COMMANDS.values() for p in command.params for option in p.opts}
    for name, (flag, variables, default, _) in rows.items():
        field = settings[name]
        for variable in re.findall(r"`(\w+)`", variables):
            sample = {"int": "7", "int | None": "7", "str": "json" if "FORMAT" in name else "sample"}.get(
                str(field.type), "7s"
            )
            loaded = getattr(pgqueue.Settings.load({variable: sample}), field.name)
            assert loaded != field.default, variable
        assert not flag or flag.strip("`") in flags
        if isinstance(field.default, timedelta):
            assert default == f"`{format_duration(field.default)}`"
        elif field.default is not None:
            assert default == f"`{field.default}`"


def test_every_exit_code_is_documented():
    table = section(read("README.md"), "Exit codes")
    for code in ("DONE", "FAILED", "USAGE", "UNREACHABLE", "SCHEMA", "INTERRUPTED"):
        assert re.search(rf"^\| (\d+, )*{getattr(exit_codes, code)}(, \d+)* \|", table, re.MULTILINE), code


def test_every_error_has_a_docstring_and_is_on_the_page():
    page = read("docs/errors.md")
    kinds = [value for value in vars(pgqueue.errors).values() if isinstance(value, type)]
    for kind in kinds:
        if issubclass(kind, PgqueueError):
            assert kind.__doc__
            assert f"| `{kind.__name__}` |" in page


def test_every_arrow_of_the_life_of_a_job_names_its_statement():
    page = read("docs/lifecycle.md")
    for arrow in ARROWS:
        assert re.search(rf": .*\b{arrow}\b", page), f"{arrow} is not in the diagram"
        assert re.search(r"`\w+\.sql`", section(page, arrow)), f"{arrow} names no file"
    for name in re.findall(r"`(\w+\.sql)`", page):
        assert (ROOT / "pgqueue/sql" / name).exists() or next(ROOT.glob(f"alembic/versions/{name}"), None)


# -- true ------------------------------------------------------------------------------------------------------------


def test_the_generated_pages_are_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for page, text in generate.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name} is out of date; run: make docs"


def test_the_readme_makes_the_ten_promises_in_their_words():
    promises = PROMISES.read_text(encoding="utf-8").strip()
    assert len(re.findall(r"^\d+\. ", promises, re.MULTILINE)) == 10
    assert promises in section(read("README.md"), "Guarantees")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page):
    for target in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path), target


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_page_holds_a_placeholder(page):
    assert not re.search(r"@[A-Z]+@|TODO|FIXME|XXX", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("block", [b for b in PYTHON if b.mark.startswith("file: ")], ids=str)
def test_a_block_that_shows_a_file_is_that_file(block):
    assert block.code == read(block.mark.removeprefix("file: "))


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python_compiles(block):
    compile(block.code, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def _shell_commands() -> list[Any]:
    lines = [(block, line) for block in BLOCKS if block.language in {"", "sh"} for line in block.code.splitlines()]
    return [
        pytest.param(line, id=f"{block}-{line}") for block, line in lines if line.startswith("pgq ") and "[" not in line
    ]


@pytest.mark.parametrize("line", _shell_commands())
def test_every_pgq_command_on_the_pages_is_one(line):
    words = shlex.split(line, comments=True)
    path = words.pop(0)
    while words and f"{path} {words[0]}" in COMMANDS:
        path = f"{path} {words.pop(0)}"
    command = COMMANDS[path]
    options = {option for parameter in command.params for option in parameter.opts}
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    assert not hasattr(command, "commands") or path == "pgq db" or words == ["--help"], f"{path} has no {words}"
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options | {"--help"}
    assert arguments or not words or words[0].startswith("-")


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_examples_of_a_page_run(name, dsn, monkeypatch):
    """A page's runnable blocks are one program. Then a worker runs the jobs that it enqueued."""
    monkeypatch.setenv("PGQUEUE_DSN", dsn)
    module = ModuleType(f"page_{Path(name).stem.lower()}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(BEFORE.get(name, "SELECT 1"))
        for block in BLOCKS:
            if str(block.page.relative_to(ROOT)) == name and block.mark == "runnable":
                if block.language == "sql":
                    connection.execute(block.code)
                else:
                    exec(compile("\n" * (block.line - 1) + block.code, name, "exec"), vars(module))
    try:
        asyncio.run(_run_what_is_there(module))
        ended = {
            record.task: record for record in module.app.client.jobs(limit=1000) if record.task in module.app.tasks
        }
        assert ended
        assert {record.state for record in ended.values()} <= {"completed", "cancelled", "scheduled"}
    finally:
        module.app.close()
        if hasattr(module, "engine"):
            module.engine.dispose()


async def _run_what_is_there(module: ModuleType) -> None:
    """The page's coroutine functions without parameters, then its jobs."""
    for function in list(vars(module).values()):
        if inspect.iscoroutinefunction(function) and not inspect.signature(function).parameters:
            await function()
    worker = pgqueue.Worker(module.app, slots=4)
    running = asyncio.create_task(worker.run())
    try:
        async with asyncio.timeout(60):
            while any(q.available or q.running for q in await module.app.aclient.queues()):  # noqa: ASYNC110 - as a user
                await asyncio.sleep(0.05)
    finally:
        worker.stop()
        await running
