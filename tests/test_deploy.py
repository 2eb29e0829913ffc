"""deploy/: everything that can be tried without a cluster, a container engine, a Prometheus or a Grafana.

Manifests against Kubernetes' own schemas (they come with kubernetes-validate), PromQL by a parser, the dashboards' and
KEDA's SQL on a real server. `kubectl`, `systemd-analyze` and `promtool` (of Debian's package prometheus) run where
they are.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes_validate
import promql_parser
import psycopg
import pytest
import yaml
from peers import Peer
from psycopg.conninfo import conninfo_to_dict
from typer.main import get_command

from pgqueue.cli import app
from pgqueue.durations import parse_duration
from pgqueue.metrics import catalogue
from pgqueue.settings import Settings
from pgqueue.worker import finisher, worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers import Server

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
YAML = sorted([*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml")])
BOARDS = sorted(DEPLOY.rglob("dashboards/*.json"))
UNITS = sorted(DEPLOY.glob("systemd/*.service"))
KEDA = {"ScaledObject", "TriggerAuthentication"}
NOT_APPLIED = {"kustomization.yaml", "secret.example.yaml"}
SEEN_BY_PROMETHEUS = {"job", "instance", "le"}
JOB_STATES = {"available", "scheduled", "retrying", "blocked", "running", "completed", "dead", "cancelled"}
OUTCOMES = {"completed", "dead", "cancelled", "retry", "snooze", "release"}
METRICS: dict[str, set[str]] = {
    "pgqueue_jobs": {"queue", "state"},
    "pgqueue_oldest_ready_seconds": {"queue"},
    "pgqueue_enqueued_total": set(),
    "pgqueue_finished_total": {"queue", "task", "outcome"},
    "pgqueue_wait_seconds": {"queue"},
    "pgqueue_run_seconds": {"queue", "task"},
    "pgqueue_claim_seconds": set(),
    "pgqueue_claim_batch_size": set(),
    "pgqueue_finish_flush_seconds": set(),
    "pgqueue_swept_total": set(),
    "pgqueue_lease_lost_total": set(),
    "pgqueue_workers": set(),
    "pgqueue_slots": {"state"},
    "pgqueue_dead_tuples": set(),
    "pgqueue_oldest_xmin_seconds": set(),
    "pgqueue_bell_up": set(),
}
HISTOGRAMS = {
    "pgqueue_wait_seconds", "pgqueue_run_seconds", "pgqueue_claim_seconds", "pgqueue_claim_batch_size",
    "pgqueue_finish_flush_seconds",
}  # fmt: skip


def relative(path: Path) -> str:
    return str(path.relative_to(DEPLOY))


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def load(name: str) -> Any:
    return yaml.safe_load(read(name))


def tool(name: str, instead: str) -> str:
    """Where a program is; skips the test, saying what was looked at instead, where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} here: {instead}")
    return found


def run(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("path", YAML, ids=relative)
def test_every_yaml_file_holds_documents(path: Path):
    documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    assert documents
    assert all(isinstance(document, dict) for document in documents)


# -- Kubernetes ------------------------------------------------------------------------------------------------------


def manifests() -> list[dict[str, Any]]:
    files = [path for path in sorted(DEPLOY.glob("kubernetes/*.yaml")) if path.name != "kustomization.yaml"]
    return [document for path in files for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def kind(wanted: str) -> dict[str, dict[str, Any]]:
    return {document["metadata"]["name"]: document for document in manifests() if document["kind"] == wanted}


def pods() -> dict[str, dict[str, Any]]:
    """The pod template of everything that starts one."""
    return {name: document["spec"]["template"] for name, document in {**kind("Deployment"), **kind("Job")}.items()}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["spec"]["containers"]
    return only


def check_against_schema(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)


def named(document: dict[str, Any]) -> str:
    return f"{document['kind']}-{document['metadata']['name']}"


OWN = [document for document in manifests() if document["kind"] not in KEDA]
DEPLOYMENTS = sorted(kind("Deployment"))


@pytest.mark.parametrize("document", OWN, ids=named)
def test_a_manifest_fits_the_schema_of_kubernetes(document: dict[str, Any]):
    check_against_schema(document)
    misspelt = copy.deepcopy(document)
    misspelt["sepc"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        check_against_schema(misspelt)


def test_kustomize_applies_every_manifest_but_the_example():
    kustomization = load("kubernetes/kustomization.yaml")
    files = {path.name for path in DEPLOY.glob("kubernetes/*.yaml")}
    assert set(kustomization["resources"]) == files - NOT_APPLIED
    assert {image["name"] for image in kustomization["images"]} == {container(pod)["image"] for pod in pods().values()}


def test_kubectl_builds_what_is_to_be_applied():
    kubectl = tool("kubectl", "the kustomization was looked at by structure only")
    built = list(yaml.safe_load_all(run(kubectl, "kustomize", DEPLOY / "kubernetes")))
    assert sorted(map(named, built)) == sorted(named(one) for one in manifests() if one["kind"] != "Secret")
    assert {container(one["spec"]["template"])["image"] for one in built if one["kind"] == "Deployment"} == {
        "pgqueue:0.1.0"
    }


def test_the_example_secrets_hold_placeholders_and_are_those_that_pods_and_keda_ask_for():
    secrets = {name: set(secret["stringData"]) for name, secret in kind("Secret").items()}
    asked = {
        source["secretRef"]["name"]
        for pod in pods().values()
        for source in container(pod)["envFrom"]
        if "secretRef" in source
    }
    (authentication,) = kind("TriggerAuthentication").values()
    for target in authentication["spec"]["secretTargetRef"]:
        assert target["key"] in secrets[target["name"]]
        asked.add(target["name"])
    assert set(secrets) == asked
    for secret in kind("Secret").values():
        for value in secret["stringData"].values():
            assert ":PASSWORD@" in value


def examples_of_dsns() -> Iterator[str]:
    for secret in kind("Secret").values():
        yield from secret["stringData"].values()
    yield from re.findall(r"^PGQUEUE_DSN=(.*)$", read("systemd/pgqueue.env.example"), re.MULTILINE)


def test_the_example_of_a_dsn_names_a_file_of_authorities_since_psycopg_knows_no_systems():
    """Its OpenSSL was built to look where nothing is: `sslrootcert=system` would refuse every server."""
    asked = [conninfo_to_dict(dsn) for dsn in examples_of_dsns()]
    assert asked
    for dsn in asked:
        assert dsn["sslmode"] in {"verify-full", "require"}
        if dsn["sslmode"] == "verify-full":
            assert str(dsn["sslrootcert"]).startswith("/etc/")


def test_what_the_pods_find_in_their_environment_are_settings():
    names = {name for secret in kind("Secret").values() for name in secret["stringData"]} - {"connection"}
    (config,) = kind("ConfigMap").values()
    assert names <= variables()
    assert set(config["data"]) <= variables()
    settings = Settings.load({**config["data"], **dict.fromkeys(names, "host=h")})
    assert settings.log_format == "json"


@pytest.mark.parametrize("name", sorted(pods()))
def test_a_pod_is_nobody_and_writes_nothing_but_tmp(name: str):
    pod, own = pods()[name]["spec"], container(pods()[name])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert f"USER {pod['securityContext']['runAsUser']}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "else variables like PGQUEUE_SERVE_PORT come from the names of Services"
    assert own["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert {mount["mountPath"] for mount in own.get("volumeMounts", [])} <= {"/tmp"}
    assert set(own["resources"]["limits"]) == {"memory"}
    assert set(own["resources"]["requests"]) == {"cpu", "memory"}


def worst_end() -> float:
    """What a worker may need beside SHUTDOWN_TIMEOUT when its database is slow just then."""
    return worker._LAST_CLAIM + worker._INTERRUPTED + finisher._PATIENCE


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_pod_is_killed_only_after_its_own_patience_has_ended(name: str):
    pod = pods()[name]["spec"]
    sleep, seconds = container(pods()[name])["lifecycle"]["preStop"]["exec"]["command"]
    (config,) = kind("ConfigMap").values()
    timeout = parse_duration(config["data"]["SHUTDOWN_TIMEOUT"]).total_seconds()
    assert sleep == "sleep"
    assert 0 <= pod["terminationGracePeriodSeconds"] - float(seconds) - timeout - worst_end() <= 30


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_probes_ask_the_port_that_is_listened_on_and_only_readiness_hangs_on_the_database(name: str):
    own = container(pods()[name])
    (port,) = own["ports"]
    assert {f"--port={port['containerPort']}", f"--metrics-port={port['containerPort']}"} & set(own["args"])
    paths = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert own[probe]["httpGet"]["port"] == port["name"]
        paths[probe] = own[probe]["httpGet"]["path"]
    assert paths == {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_selector_finds_its_pods(name: str):
    template = pods()[name]
    labels, (port,) = template["metadata"]["labels"], container(template)["ports"]
    service, budget = kind("Service")[name]["spec"], kind("PodDisruptionBudget")[name]["spec"]
    (spread,) = template["spec"]["topologySpreadConstraints"]
    assert kind("Deployment")[name]["spec"]["selector"]["matchLabels"] == labels
    assert service["selector"] == budget["selector"]["matchLabels"] == spread["labelSelector"]["matchLabels"] == labels
    assert [(one["port"], one["targetPort"]) for one in service["ports"]] == [(port["containerPort"], port["name"])]
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_prometheus_is_told_a_name_that_stands_for_every_pod(name: str):
    """Behind one address the counters of several pods would take turns, and each turn look like a restart."""
    template = pods()[name]
    (own,) = container(template)["ports"]
    found = [
        service
        for service in kind("Service").values()
        if service["spec"]["selector"] == template["metadata"]["labels"] and service["spec"].get("clusterIP") == "None"
    ]
    (service,) = found
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [one["port"] for one in service["spec"]["ports"]] == [own["containerPort"]]
    assert f"`{service['metadata']['name']}.NAMESPACE.svc`" in page("deploy.md")
    comment = " ".join(re.findall(r"^# (.*)$", read("prometheus/prometheus.yml"), re.MULTILINE))
    assert re.search(rf"\b{service['metadata']['name']}( and|,)", comment)


def test_keda_scales_the_worker_which_leaves_its_number_to_it():
    (scaled,), (authentication,) = kind("ScaledObject").values(), kind("TriggerAuthentication").values()
    spec = scaled["spec"]
    target = kind("Deployment")[spec["scaleTargetRef"]["name"]]
    assert {scaled["apiVersion"], authentication["apiVersion"]} == {"keda.sh/v1alpha1"}
    assert set(spec) <= {
        "scaleTargetRef", "pollingInterval", "cooldownPeriod", "minReplicaCount", "maxReplicaCount", "fallback",
        "advanced", "triggers",
    }  # fmt: skip
    assert "replicas" not in target["spec"]
    assert spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
    (trigger,) = spec["triggers"]
    assert set(trigger) == {"type", "metricType", "metadata", "authenticationRef"}
    assert trigger["type"] == "postgresql"
    assert trigger["metricType"] == "AverageValue"  # the only one for which KEDA knows a fallback
    assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
    assert [one["parameter"] for one in authentication["spec"]["secretTargetRef"]] == ["connection"]
    assert set(trigger["metadata"]) == {"query", "targetQueryValue"}
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes nothing else"
    assert int(trigger["metadata"]["targetQueryValue"]) == 2 * Settings().slots
    (queue,) = [word for word in container(target["spec"]["template"])["args"] if word.startswith("--queues=")]
    assert f"'{queue.removeprefix('--queues=')}'" in trigger["metadata"]["query"]


def test_kedas_query_answers_one_whole_number_to_a_role_that_may_do_nothing_else(dsn: str):
    (scaled,) = kind("ScaledObject").values()
    (grants,) = re.findall(r"^CREATE ROLE scaler .*?(?=^```)", page("deploy.md"), re.MULTILINE | re.DOTALL)
    with Peer(dsn) as peer:
        for _ in range(3):
            peer.enqueue()
        peer.begin()  # a role belongs to the whole server: it is never committed
        peer.connection.execute(grants)
        peer.sql("SET LOCAL SESSION AUTHORIZATION scaler")
        assert peer.sql(scaled["spec"]["triggers"][0]["metadata"]["query"]) == [(3,)]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            peer.sql("SELECT payload FROM pgqueue.jobs")
        peer.rollback()


# -- systemd ---------------------------------------------------------------------------------------------------------


def unit(path: Path) -> dict[str, dict[str, list[str]]]:
    """Sections, directives, and all values of each, without line continuations, of which there are none."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            own = sections.setdefault(heading[1], {})
        elif line and not line.startswith("#"):
            name, is_one, value = line.partition("=")
            assert is_one, line
            own.setdefault(name, []).append(value)
    return sections


@pytest.mark.parametrize("path", UNITS, ids=relative)
def test_a_unit_stops_in_order_comes_back_and_may_little(path: Path):
    assert set(unit(path)) == {"Unit", "Service", "Install"}
    service = unit(path)["Service"]
    timeout = Settings().shutdown_timeout.total_seconds()
    assert timeout + worst_end() < float(service["TimeoutStopSec"][0]) <= timeout + worst_end() + 30
    assert service["KillMode"] == ["mixed"]
    assert service["Restart"] == ["always"]
    assert service["RestartPreventExitStatus"] == ["2"]
    assert unit(path)["Unit"]["StartLimitIntervalSec"] == ["0"]
    assert service["User"] == ["pgqueue"]
    assert service["CapabilityBoundingSet"] == [""]
    assert service["ProtectSystem"] == ["strict"]
    assert service["NoNewPrivileges"] == ["yes"]
    assert service["SystemCallErrorNumber"] == ["EPERM"], "else a call that is not allowed kills"
    assert service["EnvironmentFile"][0] == "/etc/pgqueue/pgqueue.env"
    assert all(name.startswith("-") for name in service["EnvironmentFile"][1:])


def test_the_instance_of_a_workers_unit_is_its_queue():
    service = unit(DEPLOY / "systemd/pgqueue-worker@.service")["Service"]
    assert " worker --queues %i " in service["ExecStart"][0], "%I would turn the - of a name into a /"
    assert service["EnvironmentFile"][1:] == ["-/etc/pgqueue/worker-%i.env"]


@pytest.mark.parametrize("path", UNITS, ids=relative)
def test_systemd_takes_the_unit_and_finds_little_exposed(path: Path, tmp_path: Path):
    analyze = tool("systemd-analyze", "the units were looked at by structure only")
    program = tmp_path / "pgq"
    program.write_text("#!/bin/sh\n", encoding="utf-8")
    program.chmod(0o755)
    name = path.name.replace("@", "@emails")
    text = path.read_text(encoding="utf-8").replace("/opt/pgqueue/bin/pgq", str(program))
    (tmp_path / name).write_text(text, encoding="utf-8")
    said = run(analyze, "verify", "--man=no", tmp_path / name)
    assert not [line for line in said.splitlines() if name in line], said
    (tmp_path / name).write_text(text.replace("KillMode=", "KilMode="), encoding="utf-8")
    assert "KilMode" in run(analyze, "verify", "--man=no", tmp_path / name), "else this test proves nothing"
    (version,) = re.findall(r"^systemd (\d+)", run(analyze, "--version"), re.MULTILINE)
    if int(version) < 250:
        pytest.skip("this systemd-analyze rates no unit that is not loaded: it was verified only")
    (tmp_path / name).write_text(text, encoding="utf-8")
    run(analyze, "security", "--offline=yes", "--threshold=25", tmp_path / name)


def test_the_example_of_an_environment_file_holds_settings_and_no_password():
    lines = [line for line in read("systemd/pgqueue.env.example").splitlines() if not line.startswith("#")]
    values = dict(line.split("=", 1) for line in lines)
    assert set(values) - {"PGQUEUE_WORKER_OPTIONS"} <= variables()
    assert ":PASSWORD@" in values["PGQUEUE_DSN"]
    Settings.load(values)


# -- the command line ------------------------------------------------------------------------------------------------


def variables() -> set[str]:
    """The names of all settings in an environment."""
    names = {field.name for field in fields(Settings)}
    return {f"PGQUEUE_{name.upper()}" for name in names} | {name.upper() for name in names if not name.endswith("dsn")}


def commands() -> Iterator[Any]:
    for name, pod in pods().items():
        yield pytest.param(container(pod)["args"], id=name)
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    for name, service in compose["services"].items():
        if service["image"] == "pgqueue":
            yield pytest.param(service["command"], id=f"compose-{name}")
    for path in UNITS:
        (line,) = unit(path)["Service"]["ExecStart"]
        words = shlex.split(line)
        assert words[0] == "/opt/pgqueue/bin/pgq"
        yield pytest.param([word for word in words[1:] if not word.startswith("$PGQUEUE_")], id=path.stem)
    for comment in re.findall(
        r"^#   docker compose run --rm migrate (.*)$",
        (ROOT / "docker-compose.yml").read_text(encoding="utf-8"),
        re.MULTILINE,
    ):
        yield pytest.param(shlex.split(comment), id=f"comment-{comment.split()[0]}")
    (options,) = re.findall(r"^PGQUEUE_WORKER_OPTIONS=(.*)$", read("systemd/pgqueue.env.example"), re.MULTILINE)
    yield pytest.param(["worker", *shlex.split(options)], id="example-of-options")


@pytest.mark.parametrize("words", list(commands()))
def test_every_command_and_flag_is_one(words: list[str]):
    command = get_command(app)
    flags = {word.partition("=")[0] for word in words if word.startswith("--")}
    for word in words:
        if not hasattr(command, "commands"):
            break
        command = command.commands.get(word)
        assert command is not None, f"there is no pgq {words[0]}"
    known = {option for parameter in command.params for option in parameter.opts}
    assert flags <= known


# -- Prometheus ------------------------------------------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    (group,) = load("prometheus/alerts.yml")["groups"]
    return group["rules"]


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """What an expression reads; raises ValueError where it is none."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)

    promql_parser.walk(promql_parser.parse(expression), visit)
    assert found
    return list({str(one): one for one in found}.values())


def check_expression(expression: str) -> set[str]:
    """It reads metrics that there are by labels and values that they have; answers their names."""
    names = set()
    for selector in selectors(expression):
        name = re.sub(r"_(bucket|sum|count)$", "", selector.name)
        assert name in ({*METRICS, "up"} - HISTOGRAMS if name == selector.name else HISTOGRAMS), selector.name
        for matcher in selector.matchers.matchers:
            assert matcher.name in {*METRICS.get(name, set()), *SEEN_BY_PROMETHEUS}, f"{name} has no {matcher.name}"
            values = set(matcher.value.split("|"))
            if matcher.name == "outcome":
                assert values <= OUTCOMES
            if matcher.name == "state":
                assert values <= JOB_STATES
        names.add(name)
    return names


def test_the_metrics_are_those_that_pgqueue_shows():
    shown = {metric.name: set(metric.labels) for metric in (*catalogue.PROCESS, *catalogue.DATABASE)}
    assert shown == METRICS
    assert {name for name, metric in catalogue.COUNTED.items() if metric.kind == "histogram"} == HISTOGRAMS


@pytest.mark.parametrize(
    "expression",
    [
        "pgqueue_job > 0",
        'pgqueue_jobs{que="q"}',
        'pgqueue_jobs{state="ready"}',
        'pgqueue_finished_total{outcome="failed"}',
        "rate(pgqueue_runs_total[5m])",
        "rate(pgqueue_wait_seconds[5m])",
        "rate(pgqueue_finished_total_count[5m])",
    ],
)
def test_what_is_misspelt_in_an_expression_is_found(expression: str):
    with pytest.raises(AssertionError):
        check_expression(expression)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_is_whole_and_leads_to_what_is_to_be_done(rule: dict[str, Any]):
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert parse_duration(rule["for"]).total_seconds() >= 60
    assert set(rule["annotations"]) == {"summary", "runbook_url"}
    place, anchor = rule["annotations"]["runbook_url"].split("#")
    assert place == "docs/operations.md"
    assert anchor == rule["alert"].lower()
    assert check_expression(rule["expr"])
    paragraph = alerts_of_the_page()[rule["alert"]]
    assert "```" in paragraph, "nothing to be done is said: no command, no SQL"


def test_the_page_of_alerts_knows_these_and_no_others():
    assert list(alerts_of_the_page()) == [rule["alert"] for rule in rules()]


def test_every_alert_has_a_case_in_which_it_fires():
    fired = {
        case["alertname"]
        for test in load("prometheus/alerts.test.yml")["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules()}


def test_promtool_takes_the_files_and_the_alerts_fire_when_they_should():
    promtool = tool("promtool", "the rules were parsed, and not run on their cases")
    folder = DEPLOY / "prometheus"
    run(promtool, "check", "config", folder / "prometheus.yml")
    run(promtool, "check", "rules", folder / "alerts.yml")
    run(promtool, "test", "rules", folder / "alerts.test.yml")


def test_prometheus_scrapes_what_compose_starts_and_names_its_jobs_as_the_rules_know_them():
    config = load("prometheus/prometheus.yml")
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    ports = {
        "worker": int(compose["worker"]["environment"]["PGQUEUE_METRICS_PORT"]),
        "serve": int(compose["serve"]["command"][-1]),
    }
    assert [DEPLOY / "prometheus" / name for name in config["rule_files"]] == [DEPLOY / "prometheus/alerts.yml"]
    for job in config["scrape_configs"]:
        (found,) = job["dns_sd_configs"]
        (name,) = found["names"]
        assert found["port"] == ports[name]
        assert re.fullmatch("pgqueue-.+", job["job_name"])
        assert job.get("metrics_path", "/metrics") in {"/metrics", "/metrics/database"}
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    for expression in (*(rule["expr"] for rule in rules()), *queries()):
        for selector in selectors(expression):
            for matcher in selector.matchers.matchers:
                if matcher.name == "job":
                    assert [job for job in jobs if re.fullmatch(matcher.value, job)]


# -- Grafana ---------------------------------------------------------------------------------------------------------


def board(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def targets(wanted: str) -> list[dict[str, Any]]:
    """What the panels ask for, each with the name of its panel."""
    return [
        {**target, "title": panel["title"]}
        for path in BOARDS
        for panel in board(path)["panels"]
        for target in panel["targets"]
        if wanted in target
    ]


def queries() -> list[str]:
    """The dashboards' PromQL, with what Grafana puts in."""
    written = [target["expr"] for target in targets("expr")]
    return [query.replace("$__rate_interval", "5m").replace("$queue", ".*") for query in written]


@pytest.mark.parametrize("path", BOARDS, ids=relative)
def test_a_dashboard_is_laid_out_and_asks_sources_that_are_provisioned(path: Path):
    dashboard = board(path)
    sources = {
        source["uid"]: source["type"] for source in load("grafana/provisioning/datasources/pgqueue.yml")["datasources"]
    }
    panels = {panel["id"]: panel for panel in dashboard["panels"]}
    assert dashboard["uid"] == path.stem
    assert len(panels) == len(dashboard["panels"])
    places = set()
    for panel in panels.values():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, f"{panel['title']} covers another panel"
        places |= cells
        for asked in (panel["datasource"], *(target["datasource"] for target in panel["targets"])):
            shared = asked == {"type": "datasource", "uid": "-- Dashboard --"}
            assert shared or sources[asked["uid"]] == asked["type"]
        for target in panel["targets"]:
            assert {"expr", "rawSql", "panelId"} & set(target)
            if "panelId" in target:
                assert "rawSql" in panels[target["panelId"]]["targets"][0]


def test_compose_mounts_what_grafana_is_told_to_look_for():
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    mounts = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    (provider,) = load("grafana/provisioning/dashboards/pgqueue.yml")["providers"]
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert mounts["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    prometheus, postgres = load("grafana/provisioning/datasources/pgqueue.yml")["datasources"]
    assert prometheus["url"] == "http://prometheus:9090"
    assert postgres["url"] == "postgres:5432"
    owner = compose["postgres"]["environment"]
    assert (postgres["user"], postgres["jsonData"]["database"]) == (owner["POSTGRES_USER"], owner["POSTGRES_DB"])
    assert postgres["secureJsonData"] == {"password": "$POSTGRES_PASSWORD"}
    assert "POSTGRES_PASSWORD" in compose["grafana"]["environment"]


def test_the_dashboard_shows_every_metric():
    assert set().union(*(check_expression(query) for query in queries())) == set(METRICS)


def test_no_dashboard_asks_more_often_than_every_30_seconds():
    for path in BOARDS:
        for interval in (board(path)["refresh"], *board(path)["timepicker"]["refresh_intervals"]):
            assert parse_duration(interval).total_seconds() >= 30


LIVE = 20_000
ENDED = 30_000
FILL = f"""
    INSERT INTO pgqueue.jobs (task, queue, run_at)
    SELECT 't', 'q' || n % 3, now() + n * interval '1 second' FROM generate_series(1, {LIVE}) n;
    INSERT INTO pgqueue.history
        (id, run_at, created_at, finished_at, state, priority, attempt, max_attempts, queue, task, payload, errors)
    SELECT nextval('pgqueue.jobs_id_seq'), now(), now(), now(),
        (CASE WHEN n % 100 = 0 THEN 'dead' ELSE 'completed' END)::pgqueue.job_state, 5, 1, 1, 'q1', 't', '{{}}',
        CASE WHEN n % 100 = 0 THEN '[{{"type": "ValueError", "message": "no"}}]'::jsonb END
    FROM generate_series(1, {ENDED}) n;
    INSERT INTO pgqueue.jobs (task, queue) SELECT 't', 'q1' FROM generate_series(1, 10);
    INSERT INTO pgqueue.workers (name, host, pid, queues, slots, version) VALUES ('w', 'h', 1, '{{q1}}', 50, '0.1.0')
"""


@pytest.fixture(scope="module")
def reader(server: Server) -> Iterator[Peer]:
    """Who may read and no more, where much waits and more has ended."""
    name = server.create()
    with Peer(server.dsn(name)) as owner:
        owner.sql(FILL)
        owner.sql("VACUUM (ANALYZE) pgqueue.jobs")
        owner.sql("ANALYZE pgqueue.history")
        owner.sql("SET SESSION AUTHORIZATION pgqueue_reader")
        yield owner
    server.drop(name)


SQL = {target["title"]: target for target in targets("rawSql")}


def columns(peer: Peer, query: str) -> list[str]:
    description = peer.connection.execute(query).description
    assert description
    return [column.name for column in description]


@pytest.mark.parametrize("title", SQL)
def test_a_panels_sql_runs_for_a_reader_and_answers_something(reader: Peer, title: str):
    assert reader.sql(SQL[title]["rawSql"])
    names = columns(reader, SQL[title]["rawSql"])
    if SQL[title]["format"] == "time_series":
        assert names[:2] == ["time", "metric"]
    for path in BOARDS:
        for panel in board(path)["panels"]:
            asked = panel["fieldConfig"]["overrides"] if panel["title"] == title else []
            assert {override["matcher"]["options"] for override in asked} <= set(names)


def test_what_other_panels_take_from_the_one_that_counts_is_a_column_of_it(reader: Peer):
    (dashboard,) = [board(path) for path in BOARDS if path.stem == "pgqueue-postgresql"]
    sources = {panel["id"]: panel["targets"][0].get("rawSql") for panel in dashboard["panels"]}
    borrowed = [panel for panel in dashboard["panels"] if "panelId" in panel["targets"][0]]
    assert borrowed
    for panel in borrowed:
        field = panel["options"]["reduceOptions"]["fields"]
        names = columns(reader, sources[panel["targets"][0]["panelId"]])
        assert [name for name in names if re.search(field.strip("/"), name)]


def rows_read(peer: Peer, query: str) -> int:
    """Rows that the scans of the queue's large tables brought, or threw away."""
    ((plan,),) = peer.sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}")

    def count(node: dict[str, Any]) -> float:
        own = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        below = sum(map(count, node.get("Plans", [])))
        return below + (own * node["Actual Loops"] if re.match("jobs|history", node.get("Relation Name", "")) else 0)

    return round(count(plan[0]["Plan"]))


@pytest.mark.parametrize("title", SQL)
def test_one_panel_counts_the_live_table_and_the_others_read_no_more_than_they_show(reader: Peer, title: str):
    read = rows_read(reader, SQL[title]["rawSql"])
    limits = [int(limit) for limit in re.findall(r"LIMIT (\d+)", SQL[title]["rawSql"])]
    if title == "Queues":
        assert read >= LIVE
    else:
        partitions = 30  # each may be asked for its newest
        assert read <= sum(limits) + partitions


# -- the pages -------------------------------------------------------------------------------------------------------


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def alerts_of_the_page() -> dict[str, str]:
    own = page("operations.md").split("\n## Alerts\n", 1)[1].split("\n## ", 1)[0]
    return {part.partition("\n")[0]: part for part in own.split("\n### ")[1:]}


LOOKS = [
    pytest.param(statement, id=f"{alert}-{nth}")
    for alert, text in alerts_of_the_page().items()
    for block in re.findall(r"^```sql\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for nth, statement in enumerate(block.strip().split(";")[:-1])
]


@pytest.mark.parametrize("statement", LOOKS)
def test_what_an_alert_says_to_look_at_can_be_looked_at_by_a_reader(reader: Peer, statement: str):
    assert columns(reader, statement)


@pytest.mark.parametrize(
    ("language", "kept"), [("nginx", "location = /metrics { return 404; }"), ("caddy", "respond /metrics 404")]
)
def test_the_snippets_of_proxies_pass_no_metrics_on(language: str, kept: str):
    """They need no token."""
    (snippet,) = re.findall(rf"^```{language}\n(.*?)^```", page("tokens.md"), re.MULTILINE | re.DOTALL)
    assert kept in snippet


def test_the_page_about_deployment_names_every_file():
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert path.name in page("deploy.md") or f"`deploy/{relative(path.parent)}/`" in page("deploy.md"), path
