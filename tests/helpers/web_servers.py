"""Servers with several processes, their pages, and the alerts that these would cause."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.paths import ROOT
from tests.helpers.promtool import run_rule_tests
from tests.helpers.servers import free_port, get, running_process
from tests.helpers.waiting import wait_for_answer

RULES = ROOT / "alerts" / "apscheduler.rules.yml"
Series = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


class Page:
    """What a process has answered to a scrape."""

    def __init__(self, text: str) -> None:
        self.series: Series = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def values(self, name: str, **labels: str) -> list[float]:
        return [
            value
            for (its_name, its_labels), value in self.series.items()
            if its_name == name and labels.items() <= dict(its_labels).items()
        ]

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of the one series that has these labels; None if there is none."""
        values = self.values(f"apscheduler_{name}", **labels)
        assert len(values) <= 1, (name, labels, values)
        return values[0] if values else None

    @property
    def pids(self) -> set[int]:
        """The processes that run a scheduler."""
        infos = (labels for name, labels in self.series if name == "apscheduler_scheduler_info")
        return {int(dict(labels)["pid"]) for labels in infos}

    @property
    def runs(self) -> float:
        """How many runs have succeeded."""
        return sum(self.values("apscheduler_job_runs_total", outcome="success"))


class Server:
    """A server that runs, with its processes."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self.log = log

    def page(self, path: str = "/metrics") -> Page:
        status, text = get(f"{self.url}{path}")
        assert status == 200, text
        return Page(text)

    def workers(self) -> set[int]:
        """Return the children of the first process, as the kernel knows them."""
        pid = self.process.pid
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))

    def ask_all(self, path: str = "/") -> set[str]:
        """Ask so often at once that all workers get to answer."""
        with ThreadPoolExecutor(6) as pool:
            return {text for _, text in pool.map(get, [f"{self.url}{path}"] * 12)}


@contextlib.contextmanager
def server(
    directory: Path, *command: object, cwd: Path | None = None, **environment: Any
) -> Iterator[Server]:
    """
    Run a server until it has answered; see in the end that it ends well.

    Args:
        directory: for its log.
        *command: its arguments; ``{port}`` becomes a free one.
        cwd: where it runs.
        **environment: variables, besides those of this process.
    """
    port = free_port()
    log = directory / "log"
    arguments = [str(part).replace("{port}", str(port)) for part in command]
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PORT": str(port), **environment}
    with running_process(arguments, log, cwd=cwd or ROOT, env=variables) as process:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            return get(f"http://127.0.0.1:{port}/metrics")[0] == 200

        wait_for_answer(answers)
        yield Server(process, f"http://127.0.0.1:{port}", log)
        process.terminate()
        assert process.wait(30) in {0, -15, 143}, log.read_text()
    output = log.read_text()
    # APScheduler's thread may find a job due when Python has closed its pool already.
    at_exit = re.findall(
        "RuntimeError: cannot schedule new futures after (?:interpreter )?shutdown", output
    )
    assert output.count("Traceback") == len(at_exit), output


def gunicorn(*arguments: str) -> list[str]:
    """Return a command that runs gunicorn; its files are in memory, where tests run."""
    command = [sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:{port}", *arguments]
    return [*command, "--graceful-timeout", "5"]


def alerts(directory: Path, pages: Sequence[Page], at: int) -> set[str]:
    """
    Return which alerts fire when Prometheus sees these pages.

    Args:
        directory: for its files.
        pages: one for each minute. Their timestamps are moved to that minute, as promtool's clock
            starts at 0, and as a job that runs every second continues to run.
        at: minute at which alerts are looked at.
    """
    (now,) = pages[0].values("apscheduler_scheduler_last_wakeup_timestamp_seconds")
    series = []
    for name, labels in dict.fromkeys(key for page in pages for key in page.series):
        if not name.startswith("apscheduler_"):
            continue
        values: list[str] = []
        for minute, page in enumerate(pages):
            value = page.series.get((name, labels))
            if value is None:
                values.append("stale" if values and values[-1] not in {"_", "stale"} else "_")
                continue
            if "_timestamp_" in name and value:
                goes_on = "_start_" not in name
                value += 60 * minute * goes_on - now
            values.append(repr(value).replace("inf", "Inf"))
        words = {"job": "app", "instance": "a", **dict(labels)}
        inner = ",".join(f"{label}={json.dumps(text)}" for label, text in words.items())
        series.append({"series": f"{name}{{{inner}}}", "values": " ".join(values)})
    firing = 'count by (alertname) (ALERTS{alertstate="firing",alertname!="APSchedulerWatchdog"})'
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "15s",
        "group_eval_order": re.findall(r"^  - name: (.*)$", RULES.read_text(), re.MULTILINE),
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [{"expr": firing, "eval_time": f"{at}m", "exp_samples": []}],
            }
        ],
    }
    path = directory / "pages.json"  # JSON is YAML
    path.write_text(json.dumps(test))
    done = run_rule_tests(path)
    output = done.stdout + done.stderr
    assert done.returncode == 0 or "got:" in output, output
    return set(re.findall(r'alertname=\\?"(\w+)\\?"\} ', output))
