"""
The stack of `docker-compose.yml`: its services, their limits, and whether their parts fit.

No Docker engine is needed. The real Compose reads the file. The configurations are checked by the
tools of their servers, and run by the servers that are available (Prometheus, Alertmanager, the
application). Those of the others are in test_telemetry_services.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.alertmanager_server import Mailbox, alertmanager
from tests.helpers.compose_stack import (
    DATA_SOURCES,
    DOCKERFILES,
    PINNED,
    PORTS,
    SERVICES,
    STACK,
    compose,
    health_check,
    in_the_stack,
    load,
    mounted,
    option,
    staged,
    succeeds,
)
from tests.helpers.paths import ROOT
from tests.helpers.servers import Prometheus, free_port, get, required_program, running_process
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.once


class TestCompose:
    """The checks of Docker Compose."""

    def test_compose_file_is_valid_without_warnings(self) -> None:
        """The file is valid, without warnings."""
        done = compose("config")
        assert (done.returncode, done.stderr) == (0, "")

    def test_invalid_compose_files_are_refused(self, tmp_path: Path) -> None:
        """An unknown key and an unknown service are rejected."""
        text = (ROOT / "docker-compose.yml").read_text()
        for right, wrong in (("read_only:", "readonly:"), ("mailpit: {", "mailbox: {")):
            assert right in text
            (tmp_path / "docker-compose.yml").write_text(text.replace(right, wrong))
            done = compose("config", directory=tmp_path)
            assert done.returncode != 0
            assert wrong.split(":")[0] in done.stderr

    def test_services_are_the_application_and_its_monitoring(
        self, resolved: Mapping[str, Any]
    ) -> None:
        """The services are the application and its monitoring."""
        assert resolved["services"].keys() == PORTS.keys()

    def test_each_volume_is_used_by_one_service(self, resolved: Mapping[str, Any]) -> None:
        """Each named volume is used by exactly one service."""
        used = [
            volume["source"]
            for service in resolved["services"].values()
            for volume in service.get("volumes", ())
            if volume["type"] == "volume"
        ]
        assert sorted(used) == sorted(resolved["volumes"])

    def test_each_file_of_the_stack_is_used(self) -> None:
        """Each file in `compose` is mounted or used for a build."""
        used = {path for name in SERVICES for path in mounted(name).values()}
        assert {path for path in STACK.iterdir() if path not in used} == {DOCKERFILES[1]}


@pytest.mark.parametrize("name", SERVICES)
class TestService:
    """Each single service."""

    def test_image_is_pinned(self, resolved: Mapping[str, Any], name: str) -> None:
        """The image has an exact version, or is built."""
        service = resolved["services"][name]
        if "build" not in service:
            assert PINNED.fullmatch(service["image"])
            return
        build = service["build"]
        assert service["pull_policy"] == "build"
        assert Path(build["context"], build["dockerfile"]) in DOCKERFILES
        for image in build.get("args", {}).values():
            assert PINNED.fullmatch(image)

    def test_service_is_confined(self, resolved: Mapping[str, Any], name: str) -> None:
        """The service runs as an ordinary user, with few writable paths and with limits."""
        service = resolved["services"][name]
        assert int(service["user"].split(":")[0]) > 0
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["restart"] == "unless-stopped"
        assert int(service["mem_limit"]) <= 2**30
        assert service["pids_limit"] <= 256
        assert service["logging"]["options"].keys() == {"max-file", "max-size"}
        # Nothing that would undo it, such as `privileged`, or a way to the host.
        assert service.keys() <= {
            *("build", "cap_drop", "command", "depends_on", "entrypoint", "environment"),
            *("healthcheck", "image", "init", "logging", "mem_limit", "networks", "pids_limit"),
            *("ports", "pull_policy", "read_only", "restart", "security_opt", "stop_grace_period"),
            *("tmpfs", "user", "volumes"),
        }

    def test_ports_are_published_on_the_loopback(
        self, resolved: Mapping[str, Any], name: str
    ) -> None:
        """Ports are published on the loopback only, under the same number."""
        for port in resolved["services"][name].get("ports", ()):
            assert port["host_ip"] == "127.0.0.1"
            assert port["published"] == str(port["target"])
            assert port["target"] in PORTS[name]

    def test_has_a_health_check(self, resolved: Mapping[str, Any], name: str) -> None:
        """The service has a health check of its own port, without a shell."""
        test = resolved["services"][name]["healthcheck"]["test"]
        assert test[0] == "CMD"
        asked = {int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", " ".join(test))}
        health = {13133} if name == "otel-collector" else PORTS[name]
        assert asked <= health
        assert asked or name == "mailpit"  # whose program knows where

    def test_mounts_exist_and_are_read_only(self, resolved: Mapping[str, Any], name: str) -> None:
        """Mounted files exist and are read-only."""
        for volume in resolved["services"][name].get("volumes", ()):
            if volume["type"] == "bind":
                source = Path(volume["source"])
                assert source.exists()
                assert source.is_relative_to(ROOT)
                assert volume["read_only"] is True

    def test_service_waits_for_existing_services(
        self, resolved: Mapping[str, Any], name: str
    ) -> None:
        """Dependencies exist; the application waits for no other service to be healthy."""
        conditions = resolved["services"][name].get("depends_on", {})
        assert conditions.keys() <= PORTS.keys()
        if name in {"demo", "otel-collector"}:
            assert {one["condition"] for one in conditions.values()} == {"service_started"}


class TestDockerfiles:
    """The Dockerfiles of the images."""

    @pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
    def test_base_images_are_pinned(self, path: Path) -> None:
        """Base images have exact versions, and the last user is not root."""
        text = path.read_text()
        stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
        for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
            assert image == "${IMAGE}" or PINNED.fullmatch(image)
        for source in re.findall(r"--from=(\S+)", text):
            assert source in stages
        assert re.findall(r"^USER (\d+)", text, re.MULTILINE) == ["10001"]

    def test_copied_files_pass_dockerignore(self) -> None:
        """Files that are copied exist and are not ignored by .dockerignore."""
        ignore = (ROOT / ".dockerignore").read_text().splitlines()
        let_in = [line.removeprefix("!") for line in ignore if line.startswith("!")]
        assert "*" in ignore
        for source in copied():
            assert any(source == one or source.startswith(f"{one}/") for one in let_in), source
            # grafana/ is made by another program, which may not have run.
            assert (ROOT / source).exists(), source

    def test_the_wheel_can_be_built(self) -> None:
        """All files that pyproject.toml packs into the wheel are copied."""
        text = (ROOT / "pyproject.toml").read_text()
        section = text.partition("[tool.hatch.build.targets.wheel.force-include]")[2]
        packed = re.findall(r'^"?([\w./-]+)"? = "', section.partition("\n[")[0], re.MULTILINE)
        for source in (*packed, "src", "README.md", "LICENSE", "pyproject.toml"):
            assert any(fnmatch(source, f"{one}*") for one in copied()), source

    def test_the_application_is_where_it_is_scraped(self) -> None:
        """The application listens where Prometheus scrapes, and writes to its volume."""
        last = DOCKERFILES[0].read_text().splitlines()[-1]
        [_, _, directory, port, address] = json.loads(last.removeprefix("ENTRYPOINT "))
        assert int(port) in PORTS["demo"]
        assert address == "0.0.0.0"
        assert SERVICES["demo"]["volumes"] == [f"demo-data:{directory}"]


def copied() -> list[str]:
    """Return what the application's image is made of."""
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILES[0].read_text(), re.MULTILINE)
    return [source for line in lines for source in line.split()[:-1]]


class TestPrometheus:
    """`compose/prometheus.yml`, and how Prometheus is started."""

    config = load(STACK / "prometheus.yml")

    def test_prometheus_scrapes_the_application_and_knows_alertmanager(self) -> None:
        """Prometheus scrapes the application, and sends alerts to Alertmanager."""
        [scraped] = self.config["scrape_configs"]
        [managers] = self.config["alerting"]["alertmanagers"]
        for config in (scraped, managers):
            [targets] = [one["targets"] for one in config["static_configs"]]
            assert all(in_the_stack(target) for target in targets)
        # Links from spans to metrics go by the name of the application.
        assert scraped["job_name"] == SERVICES["demo"]["environment"]["OTEL_SERVICE_NAME"]

    def test_exemplars_and_otlp_are_on(self) -> None:
        """Exemplars and the OTLP receiver are enabled."""
        assert option("prometheus", "--enable-feature") == "exemplar-storage"
        assert "--web.enable-otlp-receiver" in SERVICES["prometheus"]["command"]

    def test_rules_are_the_shipped_ones(self) -> None:
        """The shipped rules are mounted where the configuration expects them."""
        directory = Path(option("prometheus", "--config.file")).parent
        [rules] = self.config["rule_files"]
        assert mounted("prometheus")[str(directory / rules)] == (
            ROOT / "alerts" / "apscheduler.rules.yml"
        )

    @pytest.mark.integration
    def test_promtool_accepts_the_configuration(self, tmp_path: Path) -> None:
        """The files pass promtool, with the paths of the container."""
        root = staged("prometheus", tmp_path)
        config = root / option("prometheus", "--config.file").removeprefix("/")
        done = subprocess.run(
            [required_program("promtool"), "check", "config", config],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "1 rule files found" in done.stdout
        assert "rules found" in done.stdout


class TestAlertmanager:
    """`compose/alertmanager.yml`."""

    config = load(STACK / "alertmanager.yml")
    shipped = load(ROOT / "alerts" / "alertmanager.yml")

    @pytest.mark.parametrize("part", ["templates", "route", "inhibit_rules", "time_intervals"])
    def test_configuration_is_the_shipped_one_but_for_addresses(self, part: str) -> None:
        """Apart from addresses, the configuration equals alerts/alertmanager.yml."""
        assert self.config[part] == self.shipped[part]

    def test_each_receiver_has_a_mailbox(self) -> None:
        """Each shipped receiver has a mailbox of its name."""
        receivers = self.config["receivers"]
        assert [one["name"] for one in receivers] == [
            one["name"] for one in self.shipped["receivers"]
        ]
        for receiver in receivers:
            assert receiver.keys() == {"name", "email_configs"}
            [mail] = receiver["email_configs"]
            assert mail["to"] == f"{receiver['name']}@example.org"
            # The end of the Watchdog must not look like one more ping.
            assert mail["send_resolved"] is (receiver["name"] != "watchdog")
        assert in_the_stack(self.config["global"]["smtp_smarthost"])

    @pytest.mark.integration
    def test_amtool_accepts_the_configuration(self, tmp_path: Path) -> None:
        """The files and templates pass amtool, with the paths of the container."""
        root = staged("alertmanager", tmp_path)
        config = root / option("alertmanager", "--config.file").removeprefix("/")
        done = subprocess.run(
            [required_program("amtool"), "check-config", config],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "1 templates" in done.stdout

    @pytest.mark.integration
    def test_real_alertmanager_sends_mail(self, tmp_path: Path) -> None:
        """Alerts reach the mailboxes of their routes, and the health check works."""
        binary = shutil.which("alertmanager") or required_program("prometheus-alertmanager")
        config = load(STACK / "alertmanager.yml")
        config["templates"] = [str(ROOT / "alerts" / one) for one in config["templates"]]
        config["route"]["group_wait"] = "50ms"
        labels = {"job": "demo", "scheduler": "background", "job_id": "crunch"}
        with Mailbox() as mailbox:
            config["global"]["smtp_smarthost"] = mailbox.address
            with alertmanager(binary, tmp_path / "alertmanager", config) as server:
                check = health_check("alertmanager", int(server.url.rpartition(":")[2]))
                assert succeeds(check)
                server.post(
                    {
                        "labels": {
                            "alertname": "APSchedulerRunsLost",
                            "severity": "critical",
                            **labels,
                        },
                        "annotations": {"summary": "A run is lost."},
                    },
                    {"labels": {"alertname": "APSchedulerWatchdog", "severity": "none"}},
                )
                wait_for_answer(lambda: len(mailbox.items) >= 2)
        assert not succeeds(check)
        mails = {mail.to: mail for mail in mailbox.items}
        assert mails.keys() == {"critical@example.org", "watchdog@example.org"}
        lost = mails["critical@example.org"]
        assert lost.login is None
        assert "APSchedulerRunsLost" in str(lost.message["Subject"])
        assert "crunch" in lost.body("html")


@pytest.mark.integration
class TestTogether:
    """The application and Prometheus with the files of the stack, without containers."""

    @contextlib.contextmanager
    def demo(self, directory: Path, endpoint: str) -> Iterator[int]:
        """Run the application as its image does, and yield its port."""
        port = free_port()
        directory.mkdir()
        script = ROOT / "examples" / "demo" / "app.py"
        command: list[str | Path] = [sys.executable, script, directory, str(port), "127.0.0.1"]
        variables = {
            **os.environ,
            **SERVICES["demo"]["environment"],
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "200",
            "OTEL_BLRP_SCHEDULE_DELAY": "200",
        }
        with running_process(command, directory.with_suffix(".log"), env=variables) as process:
            check = health_check("demo", port)
            wait_for_answer(lambda: succeeds(check))
            yield port
            assert process.poll() is None
        assert not succeeds(check)

    @contextlib.contextmanager
    def prometheus(self, directory: Path, port: int) -> Iterator[Prometheus]:
        """Run Prometheus with its configuration, apart from addresses and intervals."""
        root = staged("prometheus", directory)
        path = root / option("prometheus", "--config.file").removeprefix("/")
        config = load(path)
        config["global"] = dict.fromkeys(config["global"], "1s")
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        config["alerting"]["alertmanagers"][0]["static_configs"] = []
        path.write_text(json.dumps(config))  # JSON is YAML
        own = free_port()
        command = [
            *(required_program("prometheus"), f"--config.file={path}"),
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--enable-feature={option('prometheus', '--enable-feature')}",
            f"--web.listen-address=127.0.0.1:{own}",
        ]
        with running_process(command, directory / "prometheus.log"):
            server = Prometheus(f"http://127.0.0.1:{own}")
            wait_for_answer(lambda: get(f"{server.url}/-/ready")[0] == 200)
            check = health_check("prometheus", own)
            assert succeeds(check)
            yield server
        assert not succeeds(check)

    @pytest.mark.slow
    def test_exemplar_leads_to_its_trace_and_back(self, tmp_path: Path) -> None:
        """An exemplar names an exported trace, and the span's links find metrics."""
        pytest.importorskip("sqlalchemy")
        pytest.importorskip("grpc")
        from tests.helpers.otlp_receiver import OtlpReceiver

        links = DATA_SOURCES["tempo"]["jsonData"]["tracesToMetrics"]
        with (
            OtlpReceiver() as receiver,
            self.demo(tmp_path / "demo", receiver.http_endpoint) as port,
            self.prometheus(tmp_path / "prometheus", port) as server,
        ):
            query = 'apscheduler_job_run_duration_seconds_bucket{job="demo",job_id="refresh-cache"}'

            def traces() -> set[str]:
                found = server.api("query_exemplars", query=query, start="0", end=str(2**32 - 1))
                return {
                    exemplar["labels"]["trace_id"]
                    for series in found
                    for exemplar in series["exemplars"]
                }

            trace = wait_for_answer(traces).pop()
            [span] = wait_for_answer(
                lambda: [one for one in receiver.spans if one.data.trace_id.hex() == trace]
            )
            assert span.data.name == "refresh-cache"
            [record] = wait_for_answer(
                lambda: [one for one in receiver.logs if one.data.trace_id.hex() == trace]
            )
            assert record.data.event_name == "apscheduler.job.run"
            assert record.attributes["apscheduler.outcome"] == "success"
            attributes = {**span.resource, **span.attributes}
            tags = ",".join(f'{tag["value"]}="{attributes[tag["key"]]}"' for tag in links["tags"])
            assert tags == 'job="demo",scheduler="background",job_id="refresh-cache"'
            for link in links["queries"]:
                # As Grafana does: provisioning makes one $ of two, a click fills in the tags.
                expression = link["query"].replace("$$", "$").replace("$__tags", tags)
                # Not NaN, which quantiles of nothing are.
                wait_for_answer(partial(server.query, f"({expression}) >= 0"))
            wait_for_answer(lambda: server.query('ALERTS{alertname="APSchedulerWatchdog"}'))


class TestPage:
    """`docs/stack.md`."""

    page = ROOT / "docs" / "stack.md"

    def test_page_names_every_published_port(self, resolved: Mapping[str, Any]) -> None:
        """The page names the published ports, and no others."""
        published = {
            int(port["published"])
            for service in resolved["services"].values()
            for port in service.get("ports", ())
        }
        documented = {
            int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", self.page.read_text())
        }
        assert documented == published

    def test_page_names_the_images_that_run(self, resolved: Mapping[str, Any]) -> None:
        """The table of images has the versions of the stack."""
        text = self.page.read_text()
        for service in resolved["services"].values():
            for image in service.get("build", {}).get("args", {}).values():
                assert f"`{image}`" in text
            if "build" not in service:
                assert f"`{service['image']}`" in text
        for path in DOCKERFILES:
            for image in re.findall(r"^FROM ([\w./-]+:\S+)", path.read_text(), re.MULTILINE):
                assert f"`{image}`" in text
