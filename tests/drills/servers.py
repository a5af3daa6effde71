"""Prometheus and Alertmanager for the drills, with faster rules and routes."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from apscheduler_telemetry.cli.never_seen_rules import build_rules
from examples.demo import speed
from tests.drills.performance import Drill
from tests.drills.stage import FACTOR, Stage, guarded
from tests.drills.webhook import DrillError
from tests.helpers.paths import ROOT
from tests.helpers.servers import Prometheus, free_port, get, running_process
from tests.helpers.waiting import wait_for_answer


@contextlib.contextmanager
def stage(directory: Path, drills: Sequence[Drill], engine: str = "Prometheus") -> Iterator[Stage]:
    """Run Prometheus or VictoriaMetrics with vmalert, Alertmanager, and the webhook."""
    directory.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        jobs = [job for drill in drills for job in drill.jobs]
        scene = Stage(directory, jobs)
        stack.callback(scene.webhook.close)
        alertmanager = f"127.0.0.1:{free_port()}"
        rules = ROOT / "alerts" / "apscheduler.rules.yml"
        (directory / "rules.yml").write_text(speed.faster_rules(rules.read_text(), FACTOR))
        expected = [job for drill in drills for job in drill.expected_jobs]
        if expected:
            written = build_rules(expected, rules.read_bytes()).decode()
            (directory / "rules-expected.yml").write_text(speed.faster_rules(written, FACTOR))
        routes = ROOT / "alerts" / "alertmanager.yml"
        (directory / "alertmanager.yml").write_text(
            to_webhook(speed.faster_routes(routes.read_text(), FACTOR), scene.webhook.url)
        )
        stack.enter_context(
            running_process(
                [
                    *guarded(),
                    program("prometheus-alertmanager"),
                    f"--config.file={directory / 'alertmanager.yml'}",
                    f"--storage.path={directory / 'alertmanager'}",
                    f"--web.listen-address={alertmanager}",
                    "--cluster.listen-address=",
                ],
                directory / "alertmanager.log",
            )
        )
        _wait_for_server(f"http://{alertmanager}/-/ready", directory / "alertmanager.log")
        for drill in drills:
            for job in drill.jobs:
                scene.set_targets(job, drill.targets(scene, job))
        run_engine = _run_victoria_metrics if engine == "VictoriaMetrics" else _run_prometheus
        url = run_engine(stack, scene, alertmanager)
        scene.prometheus = Prometheus(url)
        stack.callback(scene.end)
        yield scene


def _run_prometheus(stack: contextlib.ExitStack, scene: Stage, alertmanager: str) -> str:
    """Run Prometheus, and return its URL."""
    directory = scene.directory
    (directory / "prometheus.yml").write_text(json.dumps(prometheus_config(scene, alertmanager)))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *guarded(),
        program("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address={address}",
    ]
    stack.enter_context(running_process(command, directory / "prometheus.log"))
    _wait_for_server(f"http://{address}/-/ready", directory / "prometheus.log")
    return f"http://{address}"


def _run_victoria_metrics(stack: contextlib.ExitStack, scene: Stage, alertmanager: str) -> str:
    """Run VictoriaMetrics, which scrapes, and vmalert with the flags of docs/alerts.md."""
    directory = scene.directory
    config = {"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}}
    config["scrape_configs"] = prometheus_config(scene, alertmanager)["scrape_configs"]
    (directory / "scrape.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        *guarded(),
        program("victoria-metrics"),
        f"-promscrape.config={directory / 'scrape.yml'}",
        "-promscrape.fileSDCheckInterval=1s",
        f"-storageDataPath={directory / 'data'}",
        f"-httpListenAddr={address}",
        "-search.latencyOffset=0s",
    ]
    stack.enter_context(running_process(command, directory / "victoria-metrics.log"))
    url = f"http://{address}"
    _wait_for_server(f"{url}/health", directory / "victoria-metrics.log")
    command = [
        *guarded(),
        program("vmalert"),
        f"-rule={directory / 'rules*.yml'}",
        f"-datasource.url={url}",
        "-datasource.queryStep=1s",
        f"-remoteWrite.url={url}",
        "-remoteWrite.flushInterval=100ms",
        f"-notifier.url=http://{alertmanager}",
        "-evaluationInterval=1s",
        f"-httpListenAddr=127.0.0.1:{free_port()}",
    ]
    stack.enter_context(running_process(command, directory / "vmalert.log"))
    return url


def prometheus_config(scene: Stage, alertmanager: str) -> dict[str, Any]:
    every_second = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    files = [str(scene.targets_file(job)) for job in scene.jobs]
    return {
        "global": every_second,
        "rule_files": [str(scene.directory / "rules*.yml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [{"job_name": "drills", "file_sd_configs": [{"files": files}]}],
    }


def to_webhook(config: str, url: str) -> str:
    """Return a configuration of Alertmanager whose receivers are all a webhook."""
    document = yaml.safe_load(config)
    document["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": url, "send_resolved": True}]}
        for receiver in document["receivers"]
    ]
    # Only what receivers need, of which there are none any more.
    document.pop("templates", None)
    resolve_timeout = document.pop("global", {}).get("resolve_timeout")
    if resolve_timeout:
        document["global"] = {"resolve_timeout": resolve_timeout}
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


def program(name: str) -> str:
    """Return the path of a program, which `make test` has installed or unpacked."""
    path = shutil.which(name)
    if path is None:
        msg = f"{name} is not on PATH; `make drill` and `make test` see to that"
        raise DrillError(msg)
    return path


def _wait_for_server(url: str, log: Path) -> None:
    try:
        wait_for_answer(lambda: get(url)[0] == 200)
    except AssertionError as error:
        msg = f"{url}: {error}\n{log.read_text(errors='replace')}"
        raise DrillError(msg) from None
