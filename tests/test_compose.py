"""docker-compose.yml, as far as it can be tried without an engine.

`docker compose config` runs where the client has it. Everywhere: the structure is checked against what Compose
knows, and what the containers would run (the migration, a worker, its healthcheck) runs here, on a real server.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from pgqueue.durations import parse_duration
from pgqueue.settings import Settings

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docker-compose.yml"
SERVICE_KEYS = {
    "build", "command", "depends_on", "deploy", "environment", "healthcheck", "image", "init", "ports", "profiles",
    "restart", "stop_grace_period", "volumes",
}  # fmt: skip
HEALTH_KEYS = {"test", "interval", "timeout", "retries", "start_period"}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The file with `${NAME:-default}` put for its default, as Compose reads it with nothing set."""
    return yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", FILE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def services(compose) -> dict[str, Any]:
    return compose["services"]


def test_docker_compose_accepts_the_file():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no `docker compose` here: the file was checked by structure only (the other tests of this file)")
    done = subprocess.run([docker, "compose", "-f", FILE, "config", "-q"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_its_structure_is_what_compose_knows(compose, services):
    assert set(compose) - {"x-pgqueue"} == {"services", "volumes"}
    assert set(services) == {"postgres", "migrate", "worker", "serve", "prometheus", "grafana"}
    for service in services.values():
        assert set(service) <= SERVICE_KEYS
        assert set(service.get("healthcheck", {})) <= HEALTH_KEYS
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in compose["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), "for other machines a proxy listens"
        for name, wait in service.get("depends_on", {}).items():
            assert name in services
            assert wait["condition"] in CONDITIONS
            assert wait["condition"] != "service_healthy" or "healthcheck" in services[name]
            assert set(services[name].get("profiles", [])) <= set(service.get("profiles", [])), "else it never starts"


def test_without_a_profile_there_are_the_database_and_the_workers(services):
    profiles = {name: service.get("profiles", []) for name, service in services.items()}
    assert profiles == {
        "postgres": [], "migrate": [], "worker": [], "serve": ["http"], "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
    }  # fmt: skip


def test_workers_start_after_the_migration_and_the_migration_after_the_server(services):
    assert services["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert services["migrate"]["restart"] == "no"
    for name in ("worker", "serve"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["worker"]["deploy"]["replicas"] == 2
    assert "pg_isready" in services["postgres"]["healthcheck"]["test"][1]


@pytest.mark.parametrize("name", ["worker", "serve"])
def test_a_container_has_longer_to_stop_than_its_jobs_and_requests(services, name):
    grace = parse_duration(services[name]["stop_grace_period"])
    assert Settings().shutdown_timeout < grace


def test_every_container_speaks_to_the_server_that_is_there(services):
    server = services["postgres"]["environment"]
    for name in ("migrate", "worker", "serve"):
        dsn = conninfo_to_dict(services[name]["environment"]["PGQUEUE_DSN"])
        assert dsn == {
            "host": "postgres", "user": server["POSTGRES_USER"], "password": server["POSTGRES_PASSWORD"],
            "dbname": server["POSTGRES_DB"],
        }  # fmt: skip
        Settings.load(services[name]["environment"])


def test_the_image_is_built_from_the_source_tree_and_runs_as_no_root():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [
        word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]
    ]
    assert {"alembic", "pgqueue", "pyproject.toml", "README.md", "LICENSE"} <= set(sources)
    assert all((ROOT / source).exists() for source in sources)
    assert lines.index("USER 10001") < lines.index('ENTRYPOINT ["pgq"]')


@pytest.mark.slow
def test_what_the_containers_run_works_and_the_healthcheck_tells(services, empty_dsn):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **services["worker"]["environment"], "PGQUEUE_DSN": empty_dsn, "PATH": path}
    kind, *check = services["worker"]["healthcheck"]["test"]
    assert kind == "CMD"
    with socket.socket() as free:  # a container has all ports to itself
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    asked = [word.replace(environment["PGQUEUE_METRICS_PORT"], port) for word in check]
    assert asked != check, "the check asks where the worker answers"
    environment["PGQUEUE_METRICS_PORT"] = port

    def healthy() -> bool:
        return subprocess.run(asked, env=environment, capture_output=True, check=False).returncode == 0

    subprocess.run(["pgq", *services["migrate"]["command"]], env=environment, check=True, capture_output=True)
    assert not healthy()
    worker = subprocess.Popen(
        ["pgq", *services["worker"]["command"]], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        with psycopg.connect(empty_dsn, autocommit=True) as connection:  # a look costs less than a healthcheck
            while connection.execute("SELECT count(*) FROM pgqueue.workers").fetchone() == (0,):
                assert worker.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert healthy()
        worker.send_signal(signal.SIGSTOP)
        assert not healthy(), "it stands still"
        worker.send_signal(signal.SIGCONT)
        assert healthy()
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=40)
        assert worker.returncode == 0, log
        assert not healthy()
    finally:
        worker.kill()
        worker.communicate()
