"""The JobQueue of python-telegram-bot, with the code of docs/schedulers.md."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers.metrics import outcomes
from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_until_async

TOKEN = "123:no-bot-has-this-token"


async def greet(_: Any) -> None: ...


async def fail(_: Any) -> None:
    raise ConnectionError


class TestJobQueue:
    """Jobs that all have the queue's own function, and no ids of the application's."""

    def test_jobs_are_labelled_by_name_and_failed_runs_are_errors(self) -> None:
        """The application's error handler gets the exception, and so does APScheduler."""
        telegram_ext = pytest.importorskip("telegram.ext")
        text = (ROOT / "docs/schedulers.md").read_text("utf-8")
        blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        define, build = (block for block in blocks if "JobQueue" in block)
        registry = CollectorRegistry()
        code = {
            "ApplicationBuilder": telegram_ext.ApplicationBuilder,
            "TOKEN": TOKEN,
            "instrument": lambda scheduler: handles.append(
                instrument(scheduler, registry=registry)
            ),
        }
        handles: list[Any] = []
        handled: list[Any] = []

        async def handle_error(_: Any, context: Any) -> None:
            handled.append(context.error)

        async def main() -> None:
            exec(define + build, code)  # as readers paste it
            application: Any = code["application"]
            application.add_error_handler(handle_error)
            queue, [telemetry] = application.job_queue, handles
            await queue.start()
            queue.run_once(greet, 0)
            queue.run_once(fail, 0, name="remind the team")
            await wait_until_async(lambda: outcomes(telemetry, "greet") == {"success": 1})
            await wait_until_async(lambda: outcomes(telemetry, "remind the team") == {"error": 1})
            assert [type(error) for error in handled] == [ConnectionError]
            await queue.stop()
            telemetry.uninstrument()

        asyncio.run(main())
