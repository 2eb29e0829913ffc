"""`pgq worker --metrics-port` and `--health-file`: real processes, scraped and probed from outside."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgqueue import App, JobSpec, Settings
from pgqueue.metrics import catalogue, watch
from pgqueue.metrics.database import DatabaseMetrics

ROOT = Path(__file__).parent.parent.parent
FAST = ("--poll", "50ms", "--shutdown-timeout", "1s", "--metrics-port", 0, "--metrics-host", "127.0.0.1")
# The names that were agreed upon, whatever the catalogue says.
AGREED = {
    "pgqueue_jobs", "pgqueue_oldest_ready_seconds", "pgqueue_enqueued_total", "pgqueue_finished_total",
    "pgqueue_wait_seconds", "pgqueue_run_seconds", "pgqueue_claim_seconds", "pgqueue_claim_batch_size",
    "pgqueue_finish_flush_seconds", "pgqueue_swept_total", "pgqueue_lease_lost_total", "pgqueue_workers",
    "pgqueue_slots", "pgqueue_dead_tuples", "pgqueue_oldest_xmin_seconds", "pgqueue_bell_up",
}  # fmt: skip

BLOCKING = """
import asyncio, threading, time
import pgqueue
from pgqueue.worker.renewer import Renewer

app = pgqueue.App()
go_on = threading.Event()

@app.task(name="block")
async def block():
    while not __import__("os").path.exists("go_on"):  # on the event loop, without an await
        time.sleep(0.05)

@app.task(name="nap")
async def nap(seconds: float):
    await asyncio.sleep(seconds)

@app.task(name="sleep_in_thread")
def sleep_in_thread(seconds: float):
    time.sleep(seconds)

@app.task(name="hang_renewer")
async def hang_renewer():
    Renewer.report = lambda self: go_on.wait()
"""


@dataclass
class Page:
    status: int
    text: str
    content_type: str

    @property
    def samples(self):
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        }

    @property
    def types(self):
        return dict(re.findall(r"^# TYPE (\S+) (\S+)$", self.text, re.MULTILINE))

    @property
    def labels(self):
        found = {}
        for family in text_string_to_metric_families(self.text):
            name = family.name + "_total" * (family.type == "counter")
            for sample in family.samples:
                found.setdefault(name, set()).update(set(sample.labels) - {"le"})
        return found


def get(port, path="/metrics", timeout=30.0):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
            return Page(answer.status, answer.read().decode(), answer.headers["Content-Type"])
    except urllib.error.HTTPError as error:
        return Page(error.code, error.read().decode(), error.headers["Content-Type"])


@pytest.fixture
def served(spawn, tmp_path):
    """Start a worker with a metrics port; answers the process and the port."""

    def start(*argv, **environment):
        (tmp_path / "blocking.py").write_text(BLOCKING)
        process = spawn("worker", *FAST, *argv, **environment)
        while line := process.stderr.readline():
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                threading.Thread(target=_drain, args=(process.stderr,), daemon=True).start()
                return process, int(found[1])
        raise AssertionError(process.wait())

    return start


def _drain(stream):
    """A pipe that is full would stop the worker."""
    with contextlib.suppress(ValueError, OSError):  # closed
        while stream.readline():
            pass


def stopped(process):
    process.terminate()
    return process.wait(60)


def documented(title):
    """The table of a section of the page: name → (type, labels)."""
    section = (ROOT / "docs/metrics.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(pgqueue_\w+)` \| (\w+) \|([^|]*)\|", section, re.MULTILINE)
    return {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def shown(metrics):
    return {metric.name: (metric.kind, metric.labels) for metric in metrics}


def test_the_page_of_the_documentation_is_the_catalogue():
    assert documented("What a worker shows") == shown(catalogue.PROCESS)
    assert documented("What the database shows") == shown(catalogue.DATABASE)
    assert set(shown([*catalogue.PROCESS, *catalogue.DATABASE])) == AGREED


def test_a_worker_shows_every_name_and_no_other(queue, served, until, dsn):
    for nth in range(20):
        queue.enqueue(JobSpec.make("echo", {"n": nth}))
    queue.enqueue(JobSpec.make("fail", max_attempts=1))
    _, port = served("--slots", 7)
    until(lambda: sum(v for k, v in get(port).samples.items() if k[0] == "pgqueue_finished_total") == 21)
    page = until(lambda: (found := get(port)).samples["pgqueue_bell_up",] == 1 and found)
    assert page.status == 200
    assert page.content_type.startswith("text/plain")
    assert page.types == {name: kind for name, (kind, _) in shown(catalogue.PROCESS).items()}
    assert page.labels == {name: set(labels) for name, (_, labels) in shown(catalogue.PROCESS).items()}
    assert page.samples["pgqueue_finished_total", "completed", "default", "echo"] == 20
    assert page.samples["pgqueue_finished_total", "dead", "default", "fail"] == 1
    assert page.samples["pgqueue_run_seconds_count", "default", "echo"] == 20
    assert page.samples["pgqueue_wait_seconds_bucket", "+Inf", "default"] == 21
    until(lambda: get(port).samples["pgqueue_slots", "free"] == 7)
    everything = get(port, "/metrics/database")
    assert everything.types == {name: kind for name, (kind, _) in shown(catalogue.DATABASE).items()}
    assert everything.labels == {name: set(labels) for name, (_, labels) in shown(catalogue.DATABASE).items()}
    assert everything.samples["pgqueue_jobs", "default", "completed"] == 20
    assert everything.samples["pgqueue_jobs", "default", "dead"] == 1
    assert until(lambda: get(port, "/metrics/database").samples["pgqueue_workers",] == 1)
    own = App(settings=Settings(dsn=dsn))  # as `pgq serve` does, without a worker
    assert {metric.name for metric in catalogue.DATABASE} == set(
        re.findall(r"^# TYPE (\S+)", DatabaseMetrics(own).read_sync().body.decode(), re.MULTILINE)
    )
    own.close()
    assert get(port, "/livez").text == get(port, "/readyz?verbose=1").text == "ok\n"
    missing = get(port, "/")
    assert missing.status == 404
    assert "/metrics" in missing.text


def test_several_processes_are_one_page_and_a_killed_one_loses_and_doubles_nothing(queue, served, until, pgq):
    supervisor, port = served("--processes", 2, "--slots", 3)

    def finished():
        return sum(value for key, value in get(port).samples.items() if key[0] == "pgqueue_finished_total")

    def pids():
        known = {worker["pid"] for worker in pgq("workers", "--json").json}
        return {pid for pid in known if Path(f"/proc/{pid}").exists()}

    until(lambda: len(pids()) == 2, "two workers")
    until(lambda: get(port, "/readyz").status == 200, "both are ready")
    for round_ in range(1, 4):
        queue.enqueue_many([JobSpec.make("echo", {"n": nth}) for nth in range(500)])
        until(lambda expected=500 * round_: finished() == expected, f"{500 * round_} ends")
        if round_ < 3:
            victim = max(pids())
            os.kill(victim, signal.SIGKILL)
            until(lambda victim=victim: len(pids() - {victim}) == 2, "its successor")
            assert finished() == 500 * round_
            until(lambda: get(port, "/readyz").status == 200, "both are ready again")
    until(lambda: get(port).samples["pgqueue_slots", "free"] == 6, "all slots to be shown as free")
    page = get(port)
    assert page.samples["pgqueue_run_seconds_count", "default", "echo"] == 1500
    assert page.samples["pgqueue_bell_up",] == 1
    assert page.types == {name: kind for name, (kind, _) in shown(catalogue.PROCESS).items()}
    assert stopped(supervisor) == 0


def test_the_files_of_several_processes_are_gone_when_they_have_ended(queue, served, until, tmp_path):
    folder = tmp_path / "tmp"
    folder.mkdir()
    supervisor, port = served("--processes", 2, TMPDIR=str(folder))
    until(lambda: get(port, "/readyz").status == 200)
    assert list(folder.glob("pgqueue-monitor-*/*"))
    assert stopped(supervisor) == 0
    assert not list(folder.glob("pgqueue-monitor-*"))


# -- health ----------------------------------------------------------------------------------------------------------


def is_touched(path, until):
    """Wait until it is touched once more."""
    before = path.stat().st_mtime_ns
    until(lambda: path.exists() and path.stat().st_mtime_ns > before, "the health file to be touched")
    return True


@pytest.mark.parametrize("processes", [1, 2])
def test_a_handler_that_blocks_the_event_loop_turns_the_probes_red_until_it_ends(
    processes, queue, served, until, tmp_path
):
    health = tmp_path / "health"
    _, port = served("--app", "blocking", "--lease", "1s", "--health-file", health, "--processes", processes)
    until(lambda: get(port, "/readyz").status == 200)
    assert get(port, "/livez").status == 200
    assert is_touched(health, until)
    queue.enqueue(JobSpec.make("block"))
    red = until(lambda: (page := get(port, "/livez")).status == 503 and page, "livez to go red")
    assert "the event loop is stuck" in red.text
    assert get(port, "/readyz").status == 503
    until(lambda: not health.exists(), "the health file to be removed")
    assert get(port).samples["pgqueue_slots", "busy"] >= 0, "the metrics are still there"
    (tmp_path / "go_on").touch()
    until(lambda: get(port, "/livez").status == 200, "livez to be green again")
    until(health.exists, "the health file to be back")


def test_a_renewer_that_hangs_turns_the_probe_red(queue, served, until):
    _, port = served("--app", "blocking", "--lease", "1s")
    until(lambda: get(port, "/readyz").status == 200)
    queue.enqueue(JobSpec.make("hang_renewer"))
    queue.enqueue(JobSpec.make("nap", {"seconds": 600}))
    red = until(lambda: (page := get(port, "/livez")).status == 503 and page, "livez to go red")
    assert "the renewer is stuck" in red.text
    assert "event loop" not in red.text


def test_long_handlers_in_every_slot_are_not_stuck(queue, served, until):
    _, port = served("--app", "blocking", "--lease", "1s", "--slots", 2)
    queue.enqueue(JobSpec.make("nap", {"seconds": 600}))
    queue.enqueue(JobSpec.make("sleep_in_thread", {"seconds": 600}))
    queue.enqueue(JobSpec.make("nap", {"seconds": 600}))
    until(lambda: get(port).samples["pgqueue_slots", "busy"] == 2)
    deadline = time.monotonic() + 8  # the patience with a lease of 1 s is 5
    while time.monotonic() < deadline:
        page = get(port, "/livez")
        assert page.status == 200, page.text
        time.sleep(0.25)


def test_a_process_that_stands_still_lets_its_health_file_grow_old(queue, spawn, until, tmp_path):
    health = tmp_path / "health"
    worker = spawn("worker", "--poll", "50ms", "--health-file", health)
    until(health.exists)
    assert is_touched(health, until)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        until(lambda: _state(worker.pid) == "T", "it to stand still")
        stopped_at = health.stat().st_mtime_ns
        time.sleep(3)
        assert health.stat().st_mtime_ns == stopped_at
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    until(lambda: health.exists() and health.stat().st_mtime_ns > stopped_at, "it to be touched again")


def test_one_of_several_processes_that_stands_still_is_red(queue, served, until, pgq):
    _, port = served("--processes", 2, "--lease", "1s")
    until(lambda: get(port, "/readyz").status == 200)
    pid = until(lambda: [worker["pid"] for worker in pgq("workers", "--json").json])[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        red = until(lambda: (page := get(port, "/livez")).status == 503 and page, "livez to go red")
        assert f"process {pid}: the event loop is stuck" in red.text
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: get(port, "/livez").status == 200, "livez to be green again")


def _state(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_the_health_file_goes_with_the_worker(queue, spawn, until, end, tmp_path):
    health = tmp_path / "health"
    worker = spawn("worker", "--poll", "50ms", "--health-file", health)
    until(health.exists)
    until(lambda: "slots" in worker.stderr.readline(), "it to work")
    assert end(worker).code == 0
    assert not health.exists()


def test_a_lost_database_is_not_stuck_but_not_ready(private_server, served, until):
    server = private_server(migrated=True)
    _, port = served("--dsn", server.dsn, "--lease", "1s")
    until(lambda: get(port, "/readyz").status == 200)
    server.stop()
    until(lambda: "can't be reached" in (page := get(port, "/readyz")).text and page.status == 503, "readyz to go red")
    until(lambda: "the bell is down" in get(port, "/readyz").text)
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        page = get(port, "/livez")
        assert page.status == 200, page.text
        time.sleep(0.25)
    assert get(port).status == 200
    server.start()
    until(lambda: get(port, "/readyz").status == 200, "readyz to be green again")


def test_a_worker_that_waits_for_its_database_answers_already(served, until):
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        _, port = served("--dsn", f"host=127.0.0.1 port={door.getsockname()[1]} dbname=x user=x")
        assert get(port, "/livez").status == 200
        page = get(port, "/readyz")
        assert page.status == 503
        assert "can't be reached" in page.text


def test_a_schema_that_does_not_fit_is_not_ready(queue, dsn, served, until):
    _, port = served()
    until(lambda: get(port, "/readyz").status == 200)
    with psycopg.connect(dsn) as connection:
        connection.execute("UPDATE pgqueue.alembic_version SET version_num = '9999'")
    page = until(lambda: (page := get(port, "/readyz")).status == 503 and page)
    assert "newer than this pgqueue" in page.text
    assert get(port, "/livez").status == 200


# -- how it is asked for -----------------------------------------------------------------------------------------------


def test_the_port_comes_from_the_environment_and_the_flag_wins(queue, spawn, until):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        worker = spawn("worker", METRICS_PORT=port, METRICS_HOST="127.0.0.1")
        _, said = worker.communicate(timeout=60)
        assert worker.returncode == 2
        assert f"can't listen on 127.0.0.1 port {port}" in said
        worker = spawn("worker", "--metrics-port", 0, METRICS_PORT=port, METRICS_HOST="127.0.0.1")
        until(lambda: "http://127.0.0.1:" in worker.stderr.readline())


def test_without_prometheus_client_the_port_is_wrong_usage_that_names_the_extra(queue, pgq, monkeypatch):
    original = watch.importlib.util.find_spec
    monkeypatch.setattr(
        watch.importlib.util, "find_spec", lambda name: None if name == "prometheus_client" else original(name)
    )
    answer = pgq("worker", "--metrics-port", 0)
    assert answer.code == 2
    assert "pip install 'pgqueue[server]'" in answer.error


@pytest.mark.parametrize("argv", [["--metrics-port", "70000"], ["--metrics-port", "http"]])
def test_a_port_without_meaning_is_wrong_usage(argv, queue, pgq):
    assert pgq("worker", *argv).code == 2


def test_a_health_file_that_can_not_be_written_is_wrong_usage(queue, pgq, tmp_path):
    answer = pgq("worker", "--health-file", tmp_path / "no" / "such" / "folder")
    assert answer.code == 2
    assert "--health-file" in answer.error


def test_a_worker_without_the_port_imports_no_prometheus_client(queue, spawn, end, until, tmp_path):
    (tmp_path / "spy.py").write_text(
        "import sys, pgqueue\napp = pgqueue.App()\n"
        "@app.task(name='loaded')\ndef loaded() -> list[str]:\n"
        "    return [name for name in ('prometheus_client', 'opentelemetry', 'http.server') if name in sys.modules]\n"
    )
    job = queue.enqueue(JobSpec.make("loaded"))
    spawn("worker", "--poll", "50ms", "--app", "spy")
    assert until(lambda: (record := queue.get(job)).finished and record).result == []
