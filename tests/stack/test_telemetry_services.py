"""
The services of `docker-compose.yml` that receive, store and show telemetry.

The Collector, Tempo, Loki and Grafana are not available here, so that their configurations are
compared with each other, with the stack and with what the application sends.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from apscheduler_telemetry.export.metric_families import FAMILIES
from tests.helpers.compose_stack import (
    DATA_SOURCES,
    PORTS,
    PROVISIONING,
    SERVICES,
    STACK,
    in_the_stack,
    load,
    mounted,
)
from tests.helpers.metrics import sample
from tests.helpers.paths import ROOT
from tests.helpers.rigs import hand_driven_rig

pytestmark = pytest.mark.once


class TestCollector:
    """`compose/otel-collector.yml`, for which no checker is available here."""

    config = load(STACK / "otel-collector.yml")

    def test_parts_of_the_collector_are_defined_and_used(self) -> None:
        """Each part of the configuration is defined and used."""
        service = self.config["service"]
        for kind in ("receivers", "processors", "exporters"):
            named = {name for pipe in service["pipelines"].values() for name in pipe[kind]}
            assert named == self.config[kind].keys()
        assert service["extensions"] == list(self.config["extensions"])

    def test_collector_sends_to_tempo_loki_and_prometheus(self) -> None:
        """Each signal goes to its store; the ports are the defaults of SDKs."""
        pipelines = self.config["service"]["pipelines"]
        assert {signal: pipe["exporters"] for signal, pipe in pipelines.items()} == {
            "traces": ["otlp_grpc/tempo"],
            "logs": ["otlp_http/loki"],
            "metrics": ["otlp_http/prometheus"],
        }
        exporters = self.config["exporters"]
        assert all(in_the_stack(one["endpoint"]) for one in exporters.values())
        assert urlsplit(exporters["otlp_http/prometheus"]["endpoint"]).path == "/api/v1/otlp"
        # The Collector adds /v1/logs.
        assert urlsplit(exporters["otlp_http/loki"]["endpoint"]).path == "/otlp"
        protocols = self.config["receivers"]["otlp"]["protocols"].values()
        assert {int(one["endpoint"].rpartition(":")[2]) for one in protocols} == PORTS[
            "otel-collector"
        ]
        assert in_the_stack(SERVICES["demo"]["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"])

    def test_collector_serves_its_health(self) -> None:
        """The Collector serves its health where the health check expects it."""
        endpoint = self.config["extensions"]["health_check"]["endpoint"]
        assert f"http://{endpoint}/" in SERVICES["otel-collector"]["healthcheck"]["test"]

    def test_collector_refuses_before_it_is_killed(self, resolved: Mapping[str, Any]) -> None:
        """The memory limiter applies below the memory limit of the container."""
        limit = self.config["processors"]["memory_limiter"]["limit_mib"] * 2**20
        assert limit < int(resolved["services"]["otel-collector"]["mem_limit"])


class TestTempo:
    """`compose/tempo.yml`, for which no checker is available here."""

    config = load(STACK / "tempo.yml")

    def test_tempo_listens_where_collector_and_grafana_ask(self) -> None:
        """Tempo listens on the ports that Collector and Grafana use."""
        grpc = self.config["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"]
        http = self.config["server"]["http_listen_port"]
        assert {int(grpc.rpartition(":")[2]), http} == PORTS["tempo"]

    def test_tempo_writes_to_its_volume_only(self) -> None:
        """Tempo writes only to its volume."""
        [volume] = [one for one in SERVICES["tempo"]["volumes"] if one.startswith("tempo-data:")]
        directory = volume.partition(":")[2]
        trace = self.config["storage"]["trace"]
        for path in (trace["local"]["path"], trace["wal"]["path"]):
            assert Path(path).is_relative_to(directory)

    def test_tempo_ends_before_it_is_killed(self, resolved: Mapping[str, Any]) -> None:
        """At its end, Tempo waits less for a job of its own than Docker waits for Tempo."""
        service = resolved["services"]["tempo"]
        granted = service.get("stop_grace_period", "10s")  # Docker's default
        wait = self.config["backend_worker"]["finish_on_shutdown_timeout"]
        assert int(wait.removesuffix("s")) < int(granted.removesuffix("s"))


class TestLoki:
    """`compose/loki.yml`, for which no checker is available here."""

    config = load(STACK / "loki.yml")

    def test_loki_listens_where_collector_and_grafana_ask(self) -> None:
        """Loki listens on the port that Collector and Grafana use."""
        assert {self.config["server"]["http_listen_port"]} == PORTS["loki"]

    def test_loki_writes_to_its_volume_only(self) -> None:
        """Loki writes only to its volume."""
        [volume] = [one for one in SERVICES["loki"]["volumes"] if one.startswith("loki-data:")]
        directory = volume.partition(":")[2]
        common = self.config["common"]
        for path in (common["path_prefix"], *common["storage"]["filesystem"].values()):
            assert Path(path).is_relative_to(directory)

    def test_loki_accepts_attributes_and_deletes_old_records(self) -> None:
        """The schema stores structured metadata, which OTLP needs, and retention is enabled."""
        [schema] = self.config["schema_config"]["configs"]
        assert (schema["schema"], schema["store"]) == ("v13", "tsdb")
        assert self.config["compactor"]["retention_enabled"] is True
        assert self.config["limits_config"]["retention_period"] == "48h"


class TestGrafana:
    """`grafana/provisioning`, for which no checker is available here."""

    def test_data_sources_are_in_the_stack(self) -> None:
        """There is one source of each kind, in the stack, which Grafana cannot change."""
        assert DATA_SOURCES.keys() == {"prometheus", "alertmanager", "tempo", "loki"}
        for uid, source in DATA_SOURCES.items():
            assert source["type"] == uid
            assert source["access"] == "proxy"
            assert source["editable"] is False
            assert urlsplit(source["url"]).hostname == uid
            assert in_the_stack(source["url"])
        [default] = [uid for uid, source in DATA_SOURCES.items() if source.get("isDefault")]
        assert default == "prometheus"

    def test_scrape_interval_of_grafana_is_not_too_short(self) -> None:
        """Grafana's scrape interval is not below that of the stack or the docs."""
        interval = int(DATA_SOURCES["prometheus"]["jsonData"]["timeInterval"].removesuffix("s"))
        for scraped in (
            load(STACK / "prometheus.yml")["global"]["scrape_interval"],
            re.findall(r"scrape_interval: (\w+)", (ROOT / "docs" / "alerts.md").read_text())[0],
        ):
            assert interval >= int(scraped.removesuffix("s"))

    def test_data_sources_link_to_each_other(self) -> None:
        """Sources link to existing sources and to attributes that spans have."""
        metrics = DATA_SOURCES["prometheus"]["jsonData"]
        assert metrics["alertmanagerUid"] == "alertmanager"
        [exemplar] = metrics["exemplarTraceIdDestinations"]
        assert exemplar["name"] == "trace_id"
        assert exemplar["datasourceUid"] == "tempo"
        traces = DATA_SOURCES["tempo"]["jsonData"]["tracesToMetrics"]
        assert traces["datasourceUid"] == "prometheus"
        attributes = re.findall(
            r"^\| `([\w.]+)` \|", (ROOT / "docs" / "opentelemetry.md").read_text(), re.MULTILINE
        )
        labels = {"job", *(label for family in FAMILIES for label in family.labels)}
        for tag in traces["tags"]:
            assert tag["key"] in {*attributes, "service.name"}
            assert tag["value"] in labels

    def test_traces_and_log_records_link_to_each_other(self) -> None:
        """A span links to the records with its trace id, and a record to its trace."""
        logs = DATA_SOURCES["tempo"]["jsonData"]["tracesToLogsV2"]
        assert logs["datasourceUid"] == "loki"
        assert '| trace_id="$${__span.traceId}"' in logs["query"]
        [trace] = DATA_SOURCES["loki"]["jsonData"]["derivedFields"]
        assert trace["datasourceUid"] == "tempo"
        assert (trace["matcherType"], trace["matcherRegex"]) == ("label", "trace_id")
        assert trace["url"] == "$${__value.raw}"

    def test_links_of_spans_work_for_generated_ids(self) -> None:
        """A span of a job whose id is generated links to the series of that job."""
        export = pytest.importorskip("opentelemetry.sdk.trace.export")
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        exporter = memory.InMemorySpanExporter()
        provider = pytest.importorskip("opentelemetry.sdk.trace").TracerProvider(
            shutdown_on_exit=False
        )
        provider.add_span_processor(export.SimpleSpanProcessor(exporter))
        with hand_driven_rig(telemetry={"tracer_provider": provider}) as rig:
            rig.scheduler.add_job(print, name="cleanup", misfire_grace_time=None)
            rig.scheduler.turn()
            rig.settle()
            [span] = exporter.get_finished_spans()
            tags = DATA_SOURCES["tempo"]["jsonData"]["tracesToMetrics"]["tags"]
            labels = {
                tag["value"]: span.attributes[tag["key"]]
                for tag in tags
                if tag["key"] != "service.name"  # of the resource
            }
            assert labels.pop("scheduler") == rig.telemetry.name
            runs = "apscheduler_job_runs_total"
            assert sample(rig.telemetry, runs, outcome="success", **labels) == 1

    def test_dashboards_are_mounted_where_grafana_looks(self) -> None:
        """Dashboards are mounted in the directory of the provider."""
        [provider] = load(PROVISIONING / "dashboards" / "apscheduler.yml")["providers"]
        directory = provider["options"]["path"]
        dashboards = mounted("grafana")[directory]
        assert dashboards == ROOT / "grafana" / "dashboards"
        home = Path(SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
        assert str(home.parent) == directory
        assert (dashboards / home.name).is_file()

    def test_provisioning_files_are_mounted_where_grafana_reads(self) -> None:
        """Each directory below provisioning/ is mounted where Grafana reads it."""
        for directory in PROVISIONING.iterdir():
            assert mounted("grafana")[f"/etc/grafana/provisioning/{directory.name}"] == directory
