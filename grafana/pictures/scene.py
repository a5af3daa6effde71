"""
What the pictures show: the demo's application twice, one of which dies, and a Prometheus.

Its rules are thirty times faster than in production, as in the demo. A receiver of OTLP keeps what
would be sent to Loki and Tempo: a log record and a span of each run.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "examples" / "demo")]

from processes import FASTER, application, free_port, running, wait_for  # noqa: E402
from speed import faster_rules  # noqa: E402
from tests.helpers.otlp_receiver import OtlpReceiver  # noqa: E402


@dataclass(frozen=True)
class Scene:
    """
    What a picture can ask.

    Attributes:
        prometheus: the address of the Prometheus.
        received: the log records and spans of all runs.
    """

    prometheus: str
    received: OtlpReceiver


@contextlib.contextmanager
def scene(seconds: float) -> Iterator[Scene]:
    """Run it all, and yield it when the second application has died, after some seconds."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pictures-")))
        received = stack.enter_context(OtlpReceiver())
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = received.http_endpoint
        ports = {}
        for name in ("shop", "billing"):
            ports[name] = free_port(0)
            (directory / name).mkdir()
            os.environ["OTEL_SERVICE_NAME"] = name
            process = stack.enter_context(application(directory / name, ports[name]))
            wait_for(f"http://127.0.0.1:{ports[name]}/metrics", process)
        rules = directory / "rules.yml"
        text = (ROOT / "alerts" / "apscheduler.rules.yml").read_text(encoding="utf-8")
        rules.write_text(faster_rules(text, FASTER))
        config = directory / "prometheus.yml"
        config.write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(rules)],
                    "scrape_configs": [
                        {
                            "job_name": name,
                            "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
                        }
                        for name, port in ports.items()
                    ],
                }
            )
        )
        url = f"http://127.0.0.1:{free_port(0)}"
        command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ]
        server = stack.enter_context(running(command, directory))
        wait_for(f"{url}/-/ready", server)
        time.sleep(seconds)
        os.killpg(process.pid, signal.SIGKILL)
        yield Scene(url, received)
