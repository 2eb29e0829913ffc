"""``pgq worker --exec``: every job is a shell command, which reads the payload and says how it went.

The command runs in a session of its own. When its shell ends, and when the run is cancelled or timed out, the whole
process group is ended: SIGTERM, and SIGKILL two seconds later.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any, Final, cast

import orjson

from pgqueue.durations import parse_duration
from pgqueue.errors import CommandFailedError, InvalidJobError, Snooze
from pgqueue.handle import current_job
from pgqueue.outcome import MAX_RESULT_BYTES
from pgqueue.run import current_run
from pgqueue.task import Task

if TYPE_CHECKING:
    from datetime import timedelta

    from pgqueue.app import App

SNOOZED: Final = 75  # EX_TEMPFAIL of sysexits.h
DEFAULT_SNOOZE: Final = "60s"
GRACE: Final = 2.0  # seconds from SIGTERM to SIGKILL

_DRAIN: Final = 1.0  # seconds for output that is still in the pipes
_LOOK: Final = 0.02
_SHOWN_ERROR: Final = 1_500  # characters of stderr in the job's error
_SHOWN_OUTPUT: Final = 2_000


def make_command_task(app: App, command: str) -> Task[[Any], Any]:
    """A task that runs ``command`` through the shell, for the jobs of every task.

    The payload's JSON comes on stdin; the facts are in the environment: PGQUEUE_JOB_ID, PGQUEUE_TASK, PGQUEUE_QUEUE,
    PGQUEUE_ATTEMPT, PGQUEUE_MAX_ATTEMPTS, PGQUEUE_META. Exit status 0 completes the job with stdout as its result
    (as JSON if it is JSON, else as text; None if empty; a note if over 1 MiB). 75 snoozes it for the duration on
    stdout, else 60 s. Any other fails the attempt with :class:`CommandFailedError`, which has the end of stderr.

    Args:
        app: whose jobs it runs.
        command: as for ``sh -c``.
    """

    async def run_command(payload: Any) -> Any:
        run = current_run.get()
        text = orjson.dumps(payload).decode() if run is None else run.payload  # as stored: no digit is lost
        status, output, errors = await _run(command, text.encode(), _environment())
        if status == 0:
            return output.result()
        if status == SNOOZED:
            raise Snooze(_snooze(output))
        raise CommandFailedError(_failure(status, errors))

    return Task(app, run_command, name="pgqueue.exec", raw=True)


async def _run(command: str, payload: bytes, environment: dict[str, str]) -> tuple[int, _Head, _Tail]:
    """Run it to its end; whatever way this ends, nothing of its process group is left."""
    transport, process = await _spawn(command, environment)
    try:
        _feed(transport, payload)
        await process.exited.wait()
    finally:
        try:
            await _end_group(transport.get_pid(), process)
        finally:
            transport.close()
    return transport.get_returncode() or 0, process.output, process.errors


async def _spawn(command: str, environment: dict[str, str]) -> tuple[asyncio.SubprocessTransport, _Process]:
    """Start it; a cancel in this moment must not leave it behind, so it comes once there is a group to end."""
    starting = asyncio.ensure_future(
        asyncio.get_running_loop().subprocess_shell(
            _Process,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        transport, process = await starting
        await _end_group(transport.get_pid(), process)
        transport.close()
        raise


def _feed(transport: asyncio.SubprocessTransport, payload: bytes) -> None:
    """The payload on stdin. A command that does not read it closes the pipe, which is its right."""
    stdin = cast("asyncio.WriteTransport", transport.get_pipe_transport(0))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError, RuntimeError):  # the last is uvloop's
        stdin.write(payload)
        stdin.close()  # after what was written has gone


async def _end_group(group: int, process: _Process) -> None:
    """End what is left of the process group and read what is left in its pipes; a second cancel kills at once."""
    try:
        if _signal(group, signal.SIGTERM):
            deadline = time.monotonic() + GRACE
            while time.monotonic() < deadline and _signal(group, 0):  # noqa: ASYNC110 - the kernel has no event for it
                await asyncio.sleep(_LOOK)
    finally:
        _signal(group, signal.SIGKILL)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN):
            await process.closed.wait()


def _signal(group: int, number: int) -> bool:
    """Whether there was anybody to hear it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


class _Process(asyncio.SubprocessProtocol):
    """Collects the output of both pipes, of each only as much as can be used."""

    def __init__(self) -> None:
        self.output = _Head()
        self.errors = _Tail()
        self.exited = asyncio.Event()
        self.closed = asyncio.Event()

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        (self.output if fd == 1 else self.errors).add(data)

    def process_exited(self) -> None:
        self.exited.set()

    def connection_lost(self, _error: Exception | None) -> None:
        self.closed.set()


class _Head:
    """The beginning of stdout, up to the longest result that is kept."""

    def __init__(self) -> None:
        self.size = 0
        self.kept = bytearray()

    def add(self, data: bytes) -> None:
        self.size += len(data)
        if room := MAX_RESULT_BYTES - len(self.kept):
            self.kept += data[:room]

    def text(self) -> str:
        return self.kept.decode(errors="replace")

    def result(self) -> Any:
        """JSON if it is JSON, else text; None if there is nothing."""
        if self.size > MAX_RESULT_BYTES:
            return {
                "note": f"stdout of {self.size} bytes is over the limit of {MAX_RESULT_BYTES}",
                "start": self.text()[:_SHOWN_OUTPUT],
            }
        if not self.kept.strip():
            return None
        try:
            return orjson.loads(self.kept)
        except ValueError:
            return self.text().removesuffix("\n")


class _Tail:
    """The end of stderr."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def add(self, data: bytes) -> None:
        self.kept += data
        del self.kept[: -4 * _SHOWN_ERROR]

    def text(self) -> str:
        return self.kept.decode(errors="replace").strip()[-_SHOWN_ERROR:]


def _environment() -> dict[str, str]:
    job = current_job()
    facts = {
        "JOB_ID": job.id, "TASK": job.task, "QUEUE": job.queue, "ATTEMPT": job.attempt,
        "MAX_ATTEMPTS": job.max_attempts, "META": orjson.dumps(job.meta).decode(),
    }  # fmt: skip
    return {**os.environ, **{f"PGQUEUE_{name}": str(value) for name, value in facts.items()}}


def _snooze(output: _Head) -> timedelta | str:
    try:
        return parse_duration(output.text().strip(), "snooze")
    except InvalidJobError:
        return DEFAULT_SNOOZE


def _failure(status: int, errors: _Tail) -> str:
    how = (
        f"the command ended with status {status}"
        if status > 0
        else f"the command was killed by {_signal_name(-status)}"
    )
    said = errors.text()
    return f"{how}: {said}" if said else f"{how} and said nothing on stderr"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
