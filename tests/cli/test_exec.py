"""The task behind `pgq worker --exec`, without a worker: a command as a handler."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest

from pgqueue import App, CommandFailedError, Settings, Snooze
from pgqueue.run import Run, current_run
from pgqueue.worker import command as module
from pgqueue.worker.command import make_command_task


@pytest.fixture
def app():
    return App(settings=Settings(dsn="dbname=nowhere"))


@pytest.fixture
def execute(app):
    async def run(command, payload="{}", *, attempt=1, meta=None):
        current_run.set(Run((5, None, 7, "emails", "mail.send", payload, attempt, 10, None, meta, None), 1, app))
        return await make_command_task(app, command).function(None)

    return run


async def appears(path):
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    return path.read_text().split()


def is_zombie(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def gone(pid):
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        while True:
            os.kill(pid, 0)
            if is_zombie(pid):
                return
            assert time.monotonic() < deadline, "it is still there"
            await asyncio.sleep(0.01)


async def test_the_payload_comes_on_stdin_as_it_is_stored(execute):
    payload = '{"n": 12345678901234567890123, "x": 1.10}'
    assert await execute("cat >&2; exit 0", payload) is None
    assert await execute("wc -c", payload) == len(payload)


async def test_a_large_payload_passes(execute):
    assert await execute("wc -c", '"' + "x" * 1_000_000 + '"') == 1_000_002


async def test_the_facts_are_in_the_environment(execute):
    names = ["JOB_ID", "TASK", "QUEUE", "ATTEMPT", "MAX_ATTEMPTS", "META"]
    told = await execute(" ; ".join(f"echo $PGQUEUE_{name}" for name in names), attempt=3, meta='{"a":1}')
    assert told.splitlines() == ["7", "mail.send", "emails", "3", "10", '{"a":1}']


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("echo '{\"a\": [1]}'", {"a": [1]}),
        ("echo plain text", "plain text"),
        ("printf 'two\\nlines\\n'", "two\nlines"),
        ("echo NaN", "NaN"),
        ("true", None),
        ("echo", None),
        ("printf '\\377'", "\N{REPLACEMENT CHARACTER}"),
    ],
)
async def test_stdout_is_the_result_as_json_or_else_as_text(command, result, execute):
    assert await execute(command) == result


async def test_a_command_that_does_not_read_its_input_is_no_failure(execute):
    assert await execute("exec <&-; echo done", '"' + "x" * 1_000_000 + '"') == "done"


async def test_another_status_fails_with_the_end_of_stderr(execute):
    with pytest.raises(CommandFailedError, match=r"(?s)status 3: .*the end$") as failure:
        await execute("yes noise | head -c 1000000 >&2; echo the end >&2; exit 3")
    assert len(str(failure.value)) < 2000


async def test_a_command_that_says_nothing_or_is_not_there_fails_plainly(execute):
    with pytest.raises(CommandFailedError, match="status 1 and said nothing"):
        await execute("false")
    with pytest.raises(CommandFailedError, match=r"status 127: .*no-such-command"):
        await execute("no-such-command")
    with pytest.raises(CommandFailedError, match="killed by SIGKILL"):
        await execute("kill -9 $$")


@pytest.mark.parametrize(
    ("said", "delay"), [("", "60s"), ("later", "60s"), ("5m", timedelta(minutes=5)), ("2", timedelta(seconds=2))]
)
async def test_75_snoozes_for_as_long_as_stdout_says(said, delay, execute):
    with pytest.raises(Snooze) as snooze:
        await execute(f"echo {said}; exit 75")
    assert snooze.value.delay == delay


async def test_output_without_end_is_read_and_dropped(execute):
    result = await execute("yes | head -c 50000000")
    assert result["note"].startswith("stdout of 50000000 bytes is over the limit")
    assert len(result["start"]) == 2000


async def test_a_cancel_ends_the_whole_process_group(execute, tmp_path):
    pids = tmp_path / "pids"
    running = asyncio.create_task(execute(f"sleep 600 & echo $$ $! > {pids}; wait"))
    shell, child = map(int, await appears(pids))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(shell)
    await gone(child)


async def test_what_ignores_sigterm_is_killed(execute, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "GRACE", 0.1)
    pids = tmp_path / "pids"
    running = asyncio.create_task(execute(f"trap '' TERM; echo $$ > {pids}; while :; do sleep 1; done"))
    (shell,) = map(int, await appears(pids))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await gone(shell)


async def test_a_second_cancel_kills_at_once(execute, tmp_path):
    pids = tmp_path / "pids"
    running = asyncio.create_task(execute(f"trap '' TERM; echo $$ > {pids}; while :; do sleep 1; done"))
    (shell,) = map(int, await appears(pids))
    running.cancel()
    await asyncio.sleep(0)
    running.cancel()
    begin = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - begin < module.GRACE
    await gone(shell)


async def test_a_cancel_while_the_command_is_starting_leaves_nothing(execute, tmp_path):
    running = asyncio.create_task(execute(f"echo $$ >> {tmp_path}/started; exec sleep 600"))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    if (tmp_path / "started").exists():
        for pid in (tmp_path / "started").read_text().split():
            await gone(int(pid))


async def test_what_a_command_leaves_in_the_background_is_ended_with_it(execute):
    begin = time.monotonic()
    pid = await execute("sleep 600 & echo $!")
    await gone(pid)
    assert time.monotonic() - begin < 10


async def test_the_command_sees_a_sigterm_first(execute, tmp_path):
    pids, told = tmp_path / "pids", tmp_path / "told"
    running = asyncio.create_task(
        execute(f"trap 'echo asked > {told}; exit 0' TERM; echo $$ > {pids}; sleep 600 & wait")
    )
    await appears(pids)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert told.read_text() == "asked\n"


@pytest.mark.parametrize(
    ("command", "result"),
    [("wc -c", 1_000_002), ("exec <&-; echo done", "done"), ("true", None), ("yes | head -c 3000 | wc -c", 3000)],
)
def test_it_is_the_same_on_uvloop(command, result, execute):
    uvloop = pytest.importorskip("uvloop")

    async def often():
        return {str(await execute(command, '"' + "x" * 1_000_000 + '"')) for _ in range(10)}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(often()) == {str(result)}


def test_a_cancel_on_uvloop_leaves_nothing_either(execute, tmp_path):
    uvloop = pytest.importorskip("uvloop")
    pids = tmp_path / "pids"

    async def story():
        running = asyncio.create_task(execute(f"sleep 600 & echo $$ $! > {pids}; wait"))
        found = await appears(pids)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        for pid in found:
            await gone(int(pid))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(story())


def test_an_unknown_signal_has_a_name_too():
    assert module._signal_name(signal.SIGTERM) == "SIGTERM"
    assert module._signal_name(1234) == "signal 1234"
