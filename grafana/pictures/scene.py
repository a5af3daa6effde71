"""
What the pictures show: the demo's application twice, one of which dies, and a Prometheus.

Usage: scene.py SECONDS, after which the second application is killed; ends with Ctrl-C. Prints the
address of the Prometheus, whose rules are thirty times faster than in production, as in the demo.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "examples" / "demo"))

from processes import FASTER, application, free_port, running, wait_for  # noqa: E402
from speed import faster_rules  # noqa: E402


@contextlib.contextmanager
def scene(seconds: float) -> Iterator[str]:
    """Run it all, let the second application die after a while, and yield Prometheus' address."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pictures-")))
        ports = {}
        for name in ("shop", "billing"):
            ports[name] = free_port(0)
            (directory / name).mkdir()
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
        yield url


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # both end what was started as well
        signal.signal(number, lambda *_: sys.exit())
    with scene(float(sys.argv[1])) as address:
        print(address, flush=True)
        signal.pause()
