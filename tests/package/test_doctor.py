"""``apscheduler-telemetry doctor`` and `Telemetry.check`: risks in how schedulers are set up."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.cron import CronTrigger

from apscheduler_telemetry.adapters.apscheduler3.checked_jobs import collect_jobs
from apscheduler_telemetry.adapters.apscheduler3.time_checks import check_clock_changes
from apscheduler_telemetry.cli import imported_application, main
from apscheduler_telemetry.cli.doctor import FINDING_CODES
from tests.helpers.commands import run_command
from tests.helpers.jobs import nothing
from tests.helpers.paths import ROOT
from tests.helpers.schedulers import APSCHEDULER

EXAMPLES = ROOT / "examples"
PRELUDE = """
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.jobstores.base import BaseJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

def job(*args):
    pass

class Store(BaseJobStore):
    add_job = get_all_jobs = get_due_jobs = get_next_run_time = lookup_job = lambda *_: None
    remove_all_jobs = remove_job = update_job = lambda *_: None

def scheduler_of(*schedulers, **options):
    return BackgroundScheduler(timezone="UTC", **options)

def database(url, **options):
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
    from sqlalchemy import create_engine
    driver = SimpleNamespace(paramstyle="format", __version__="2.9.0")
    return SQLAlchemyJobStore(engine=create_engine(url, module=driver, **options))

scheduler = scheduler_of()
"""
repeats_runs = pytest.mark.skipif(
    APSCHEDULER < (3, 11), reason="APScheduler 3.10 fires once in the hour that comes twice"
)
needs_sqlalchemy = pytest.mark.skipif(
    importlib.util.find_spec("sqlalchemy") is None, reason="needs SQLAlchemy"
)
DAILY = "'cron', hour=2, id='a', misfire_grace_time=60"
STORED = "scheduler = scheduler_of(jobstores={'default': Store()})\n"
STARTED = "import a_framework\nscheduler.start()  # shutdown\n"
ELEVEN = "for n in range(11): scheduler.add_job(job, 'cron', second=0, id=str(n)"
BERLIN = "scheduler = BackgroundScheduler(timezone='Europe/Berlin')\n"
MYSQL = "mysql+pymysql://u@h/d"
POSTGRESQL = "postgresql+pg8000://u@h/d"
AND = "scheduler.add_job(job, AndTrigger([CronTrigger(hour=2, timezone='UTC'), "
COROUTINE = "async def coroutine(): pass\n"

# The code, a fault, and the same application without it.
FAULTS = [
    pytest.param(
        "memory-jobstore",
        "scheduler.add_job(job, 'interval', days=7, id='a', misfire_grace_time=60)",
        "scheduler.add_job(job, 'interval', days=7, id='a', misfire_grace_time=60,"
        " start_date='2026-01-01 04:00:00')",
        id="memory-jobstore-interval",
    ),
    pytest.param(
        "memory-jobstore",
        "scheduler.add_job(job, 'date', run_date=datetime.now(timezone.utc) + timedelta(hours=1),"
        " misfire_grace_time=60)",
        "scheduler.add_job(job, 'date', misfire_grace_time=60)",
        id="memory-jobstore-date",
    ),
    pytest.param(
        "misfire-grace-time",
        "scheduler.add_job(job, 'cron', hour=2, id='a')",
        f"scheduler.add_job(job, {DAILY})",
        id="misfire-grace-time",
    ),
    pytest.param(
        "coalesce",
        "scheduler = scheduler_of(job_defaults={'coalesce': False, 'misfire_grace_time': None})\n"
        "scheduler.add_job(job, 'interval', minutes=1, id='a')",
        "scheduler = scheduler_of(job_defaults={'coalesce': False, 'misfire_grace_time': 60})\n"
        "scheduler.add_job(job, 'interval', minutes=1, id='a')",
        id="coalesce",
    ),
    pytest.param(
        "max-instances",
        "scheduler.add_job(job, 'interval', seconds=1, id='a', max_instances=10)\n"
        "scheduler.add_job(job, 'interval', seconds=1, id='b')",
        "scheduler.add_job(job, 'interval', seconds=1, id='a', max_instances=10)",
        id="max-instances",
    ),
    pytest.param(
        "pool-size", f"{ELEVEN})", f"{ELEVEN}, executor='p' * (n > 5) or 'default')", id="pool-size"
    ),
    pytest.param(
        "local-timezone",
        f"scheduler = BackgroundScheduler()\nscheduler.add_job(job, {DAILY.replace('2', '12')})",
        "scheduler = BackgroundScheduler()\n"
        "scheduler.add_job(job, 'cron', second=0, id='a', misfire_grace_time=60)",
        id="local-timezone",
    ),
    pytest.param(
        "local-timezone",
        "scheduler.add_job(job, CronTrigger.from_crontab('0 12 * * *'), misfire_grace_time=60)",
        "scheduler.add_job(job, CronTrigger.from_crontab('0 12 * * *', 'UTC'),"
        " misfire_grace_time=60)",
        id="local-timezone-trigger",
    ),
    pytest.param(
        "dst-gap",
        f"{BERLIN}scheduler.add_job(job, {DAILY})",
        f"{BERLIN}scheduler.add_job(job, {DAILY.replace('2', '4')})",
        id="dst-gap",
        marks=repeats_runs,
    ),
    pytest.param(
        "generated-id",
        f"{STORED}scheduler.add_job(job, 'interval', seconds=9)",
        f"{STORED}scheduler.add_job(job, 'interval', seconds=9, id='a', replace_existing=True)",
        id="generated-id",
    ),
    pytest.param(
        "no-replace-existing",
        f"{STORED}scheduler.add_job(job, 'interval', seconds=9, id='a')",
        f"{STORED}scheduler.add_job(job, 'interval', seconds=9, id='a', replace_existing=True)",
        id="no-replace-existing",
    ),
    pytest.param(
        "not-serializable",
        f"{STORED}scheduler.add_job(lambda: 1, 'interval', seconds=9, id='a',"
        " replace_existing=True)",
        f"{STORED}scheduler.add_job(job, 'interval', seconds=9, id='a', replace_existing=True)",
        id="not-serializable-function",
    ),
    pytest.param(
        "not-serializable",
        "scheduler = scheduler_of(executors={'default': ProcessPoolExecutor(1)})\n"
        "scheduler.add_job(job, 'interval', seconds=9, id='a', args=[iter(job for _ in 'x')])",
        "scheduler = scheduler_of(executors={'default': ThreadPoolExecutor(1)})\n"
        "scheduler.add_job(job, 'interval', seconds=9, id='a', args=[iter(job for _ in 'x')])",
        id="not-serializable-argument",
    ),
    pytest.param(
        "daemon-thread",
        "scheduler.start() # shutdown",
        "BlockingScheduler().start() # shutdown",
        id="daemon-thread",
    ),
    pytest.param(
        "pool-pre-ping",
        f"scheduler = scheduler_of(jobstores={{'default': database('{POSTGRESQL}')}})",
        f"store = database('{POSTGRESQL}', pool_pre_ping=True)\n"
        "scheduler = scheduler_of(jobstores={'default': store})",
        id="pool-pre-ping",
        marks=needs_sqlalchemy,
    ),
    pytest.param(
        "shared-jobstore",
        "store = Store()\none = scheduler_of(jobstores={'x': store})\n"
        "two = scheduler_of(jobstores={'y': store})",
        "store = Store()\none = scheduler_of(jobstores={'x': store})\n"
        "two = scheduler_of(jobstores={'y': Store()})",
        id="shared-jobstore",
    ),
    pytest.param(
        "and-trigger-hangs",
        f"{AND}IntervalTrigger(seconds=7.5, start_date='2026-01-01 00:00:01', timezone='UTC')]),"
        " id='a', misfire_grace_time=60)",
        "scheduler.add_job(job, CronTrigger(day_of_week='mon', hour=2, timezone='UTC'), id='a',"
        " misfire_grace_time=60)",
        id="and-trigger-hangs",
    ),
    pytest.param(
        "never-awaited",
        f"{COROUTINE}scheduler.add_job(coroutine, 'interval', seconds=9, id='a')",
        f"{COROUTINE}scheduler = AsyncIOScheduler(timezone='UTC')\n"
        "scheduler.add_job(coroutine, 'interval', seconds=9, id='a')",
        id="never-awaited-coroutine",
    ),
    pytest.param(
        "never-awaited",
        "def generator(): yield\nscheduler.add_job(generator, 'interval', seconds=9, id='a')",
        "def generator(): yield\n"
        "scheduler.add_job(lambda: list(generator()), 'interval', seconds=9, id='a')",
        id="never-awaited-generator",
    ),
    pytest.param(
        "uwsgi-threads",
        "Path('uwsgi.ini').write_text('[uwsgi]\\nmodule = app\\n')",
        "Path('uwsgi.ini').write_text('[uwsgi]\\nmodule = app\\nenable-threads = true\\n')",
        id="uwsgi-threads",
    ),
    pytest.param(
        "no-shutdown",
        "BlockingScheduler().start()",
        "import atexit\nblocking = BlockingScheduler()\nblocking.start()\n"
        "atexit.register(blocking.shutdown)",
        id="no-shutdown",
    ),
    pytest.param(
        "dst-gap",
        f"{BERLIN}parts = [CronTrigger(hour=hour, timezone='Europe/Berlin') for hour in (2, 14)]\n"
        "scheduler.add_job(job, OrTrigger(parts), misfire_grace_time=60)",
        f"{BERLIN}parts = [CronTrigger(hour=hour, timezone='Europe/Berlin') for hour in (4, 16)]\n"
        "scheduler.add_job(job, OrTrigger(parts), misfire_grace_time=60)",
        id="dst-gap-in-or",
        marks=repeats_runs,
    ),
    pytest.param(
        "local-timezone",
        "parts = [CronTrigger(hour=4), CronTrigger(hour=16)]\n"
        "scheduler.add_job(job, OrTrigger(parts), misfire_grace_time=60)",
        f"scheduler = BackgroundScheduler()\nscheduler.add_job(job, {DAILY}, timezone='UTC')",
        id="local-timezone-in-or",
    ),
    pytest.param(
        "local-timezone",
        f"scheduler = BackgroundScheduler()\nscheduler.add_job(job, {DAILY})\n"
        "scheduler.configure(timezone='Asia/Tokyo')",
        "scheduler = BackgroundScheduler()\nscheduler.configure(timezone='Asia/Tokyo')\n"
        f"scheduler.add_job(job, {DAILY})",
        id="local-timezone-configured-too-late",
    ),
    pytest.param(
        "shared-jobstore",
        "for path in ('jobs.db', Path('jobs.db').resolve()):\n"
        "    scheduler_of().add_jobstore('sqlalchemy', url=f'sqlite:///{path}')",
        "for path in ('jobs.db', Path('other.db').resolve()):\n"
        "    scheduler_of().add_jobstore('sqlalchemy', url=f'sqlite:///{path}')",
        id="shared-jobstore-file",
        marks=needs_sqlalchemy,
    ),
    pytest.param(
        "shared-jobstore",
        "for url in ('postgresql+pg8000://a@h/d', 'postgresql+psycopg2://b@h/d?sslmode=require'):\n"
        "    scheduler_of(jobstores={'x': database(url, pool_pre_ping=True)})",
        "for url in ('postgresql+pg8000://a@h/d', 'postgresql+psycopg2://a@h/e?sslmode=require'):\n"
        "    scheduler_of(jobstores={'x': database(url, pool_pre_ping=True)})",
        id="shared-jobstore-user",
        marks=needs_sqlalchemy,
    ),
    pytest.param(
        "dst-gap",
        f"{BERLIN}scheduler.add_job(job, {DAILY}, start_date='2026-01-01')",
        f"{BERLIN}late = datetime.now(timezone.utc) + timedelta(days=400)\n"
        f"scheduler.add_job(job, {DAILY}, start_date=late)",
        id="dst-gap-start-date",
        marks=repeats_runs,
    ),
    pytest.param("pool-size", f"{ELEVEN})", f"{ELEVEN}, jitter=20)", id="pool-size-jitter"),
    pytest.param(
        "misfire-grace-time",
        "scheduler.add_job(job, 'cron', year=2100, hour=2, minute=0, month=1, day=1, id='a')",
        "scheduler.add_job(job, 'cron', year=2100, month=1, day=1, hour=2, minute=0, id='a',"
        " misfire_grace_time=60)",
        id="misfire-grace-time-once",
    ),
    pytest.param(
        "never-awaited",
        "class Job:\n    async def __call__(self): pass\n"
        "scheduler = AsyncIOScheduler(timezone='UTC')\n"
        "scheduler.add_job(Job(), 'interval', seconds=9, id='a', name='n')",
        "class Job:\n    async def __call__(self): pass\n"
        "scheduler = AsyncIOScheduler(timezone='UTC')\n"
        "scheduler.add_job(Job().__call__, 'interval', seconds=9, id='a')",
        id="never-awaited-object",
    ),
    pytest.param(
        "no-replace-existing",
        f"{STORED}{STARTED}if not scheduler.get_job('b'): pass\n"
        "scheduler.add_job(job, 'interval', seconds=9, id='a')",
        f"{STORED}{STARTED}if not scheduler.get_job('a'):\n"
        "    scheduler.add_job(job, 'interval', seconds=9, id='a')",
        id="no-replace-existing-looked-up",
    ),
    pytest.param(
        "generated-id",
        f"{STORED}scheduler.remove_all_jobs()\n{STARTED}"
        "scheduler.add_job(job, 'interval', seconds=9)\nscheduler.get_jobs()",
        f"{STORED}{STARTED}scheduler.remove_all_jobs()\n"
        "scheduler.add_job(job, 'interval', seconds=9)",
        id="generated-id-removed-before",
    ),
]


@pytest.fixture
def doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Callable[..., tuple[int, list[dict[str, Any]]]]]:
    """Return a function that checks an application, given its source after the prelude."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(imported_application, "WEB_FRAMEWORKS", ("a_framework",))

    def run(source: str, *arguments: str, target: str = "app") -> tuple[int, list[dict[str, Any]]]:
        for name in ("app", "a_framework"):
            sys.modules.pop(name, None)
        Path("app.py").write_text(PRELUDE + textwrap.dedent(source), "utf-8")
        (tmp_path / "a_framework.py").touch()
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            status = main(["doctor", target, "--json", *arguments])
        finally:
            sys.dont_write_bytecode = before
        output, errors = capfdbinary.readouterr()
        assert errors == b""
        return status, json.loads(output)

    yield run
    for name in ("app", "a_framework"):
        sys.modules.pop(name, None)


def codes_of(findings: list[dict[str, Any]]) -> set[str]:
    return {finding["code"] for finding in findings}


class TestCodes:
    """Each code."""

    @pytest.mark.parametrize(("code", "fault", "mended"), FAULTS)
    def test_fault_is_found_and_its_mended_form_is_not(
        self, doctor: Callable[..., Any], code: str, fault: str, mended: str
    ) -> None:
        """An application with one fault has this code only; without the fault, it has none."""
        status, findings = doctor(fault)
        assert codes_of(findings) == {code}
        assert status == any(finding["level"] == "serious" for finding in findings)
        assert all(finding["message"] and finding["fix"] for finding in findings)
        assert doctor(mended) == (0, [])

    @needs_sqlalchemy
    def test_pool_that_keeps_connections_to_mysql_for_ever_is_found(
        self, doctor: Callable[..., Any]
    ) -> None:
        """`pool-recycle` is for MySQL; pool_pre_ping makes it unnecessary."""
        source = "scheduler = scheduler_of(jobstores={{'default': database('{}', {})}})"
        assert codes_of(doctor(source.format(MYSQL, ""))[1]) == {"pool-pre-ping", "pool-recycle"}
        assert codes_of(doctor(source.format(MYSQL, "pool_recycle=9"))[1]) == {"pool-pre-ping"}
        assert codes_of(doctor(source.format(MYSQL, "pool_pre_ping=True"))[1]) == set()

    def test_uuid_as_id_may_be_another_one_at_each_start(self, doctor: Callable[..., Any]) -> None:
        """Without `replace_existing=True`, it is serious even if it is always the same."""
        add = "scheduler.add_job(job, 'interval', seconds=9, id='{}', replace_existing={})"
        for replaces, expected_level in ((True, "info"), (False, "serious")):
            source = f"{STORED}{add.format(uuid.uuid4(), replaces)}"
            [finding] = doctor(source)[1]
            assert (finding["code"], finding["level"]) == ("generated-id", expected_level)

    def test_every_code_has_a_case(self) -> None:
        """The tests above plant each fault that has a code."""
        assert {case.values[0] for case in FAULTS} | {"pool-recycle"} == set(FINDING_CODES)

    def test_every_code_is_explained(self) -> None:
        """docs/cli.md has a row for each code, in the order of the alphabet."""
        lines = (ROOT / "docs" / "cli.md").read_text("utf-8").splitlines()
        rows = [line.split("`")[1] for line in lines if line.startswith("| `") and "|" in line]
        assert (
            [row for row in rows if row in FINDING_CODES]
            == sorted(FINDING_CODES)
            == list(FINDING_CODES)
        )

    @repeats_runs
    def test_hour_that_clocks_repeat_is_named_with_its_date(
        self, doctor: Callable[..., Any]
    ) -> None:
        """A job at 2:30 in Berlin is told the night in which it runs twice."""
        [finding] = doctor(
            f"{BERLIN}scheduler.add_job(job, 'cron', hour=2, minute=30, misfire_grace_time=60)"
        )[1]
        assert re.search(r"runs twice at 02:30 on 20\d\d-10-(2[5-9]|3[01])", finding["message"])

    @pytest.mark.parametrize(
        "job",
        [
            "'cron', hour='*/2'",  # its runs of that night are not those that matter
            "'interval', hours=1",
            "'cron', hour=3",
            "'cron', hour=2, timezone='Asia/Tokyo'",
        ],
    )
    def test_job_that_no_change_of_clocks_affects_has_no_finding(
        self, doctor: Callable[..., Any], job: str
    ) -> None:
        """Frequent jobs, intervals, other hours and zones without changes."""
        source = f"{BERLIN}scheduler.add_job(job, {job}, misfire_grace_time=60)"
        assert doctor(source) == (0, [])

    @repeats_runs
    @pytest.mark.parametrize("zone", ["Australia/Sydney", "America/New_York", "America/Havana"])
    def test_clocks_change_on_both_sides_of_utc(
        self, doctor: Callable[..., Any], zone: str
    ) -> None:
        """Of all nights of a year, only those are named in which clocks change."""
        [finding] = doctor(
            f"""
            scheduler = BackgroundScheduler(timezone="{zone}")
            for hour in (0, 1, 2, 3, 4, 12):
                scheduler.add_job(job, "cron", hour=hour, minute=30, misfire_grace_time=60)
            """
        )[1]
        repeated = {"Australia/Sydney": "02", "America/New_York": "01", "America/Havana": "00"}
        assert re.findall(r"twice at (\d\d):30", finding["message"]) == [repeated[zone]]
        assert len(finding["job_ids"]) == 1

    @repeats_runs
    def test_end_of_a_job_is_before_the_change_of_clocks(self) -> None:
        """A job that ends before clocks change is not affected; one that ends later is."""
        change = datetime(2027, 10, 31, tzinfo=timezone.utc)
        for end, is_found in ((change, False), (change + timedelta(days=2), True)):
            scheduler = BackgroundScheduler(timezone="Europe/Berlin")
            trigger = CronTrigger(hour=2, timezone="Europe/Berlin", end_date=end)
            scheduler.add_job(nothing, trigger, misfire_grace_time=60)
            jobs = collect_jobs(scheduler, {}, change - timedelta(days=9))
            found = list(check_clock_changes(jobs, change - timedelta(days=9)))
            assert len(found) == is_found

    def test_few_runs_wait_in_a_large_pool(self, doctor: Callable[..., Any]) -> None:
        """Jobs with a longer grace time are not dropped, so that it is not serious."""
        [finding] = doctor(f"{ELEVEN}, misfire_grace_time=60)")[1]
        assert (finding["code"], finding["level"]) == ("pool-size", "info")
        assert "11 jobs are due at" in finding["message"]

    def test_frequent_jobs_count_when_rare_ones_are_due(self, doctor: Callable[..., Any]) -> None:
        """Far more than ten fire times ahead, a job of every second is due as well."""
        [finding] = doctor(
            f"""
            scheduler.add_job(job, "interval", seconds=1, id="often")
            for n in range(10):
                scheduler.add_job(job, {DAILY.replace("'a'", "str(n)")})
            """
        )[1]
        assert finding["message"].startswith("11 jobs are due at ")

    def test_web_framework_keeps_the_main_thread(self, doctor: Callable[..., Any]) -> None:
        """A daemon thread in a web application is no finding."""
        assert doctor("import a_framework\nscheduler.start() # shutdown") == (0, [])

    def test_named_scheduler_is_compared_with_all_others(self, doctor: Callable[..., Any]) -> None:
        """The other one that shares its store need not be the target."""
        source = """
            store = Store()
            one = scheduler_of(jobstores={'x': store})
            two = scheduler_of(jobstores={'y': store})
            """
        status, findings = doctor(source, target="app:two")
        assert (status, codes_of(findings)) == (1, {"shared-jobstore"})

    def test_scheduler_that_only_adds_jobs_may_share_a_store(
        self, doctor: Callable[..., Any]
    ) -> None:
        """One that is started as paused runs no jobs."""
        source = """
            import a_framework
            store = Store()  # shutdown
            one = scheduler_of(jobstores={'x': store})
            one.start(paused=True)
            two = scheduler_of(jobstores={'y': store})
            """
        assert doctor(source) == (0, [])
        resumed = "one.start(paused=True); one.resume()"
        assert doctor(source.replace("one.start(paused=True)", resumed))[0] == 1

    @pytest.mark.parametrize(
        ("source", "fix"),
        [
            (
                """
                scheduler.add_executor(ProcessPoolExecutor(1), "x")
                for n in "ab": scheduler.add_job(print, "cron", second=0, id=n, executor="x")
                """,
                "executors={'x': ProcessPoolExecutor(2)}  # for the scheduler",
            ),
            (
                """
                async def coroutine(): pass
                scheduler = AsyncIOScheduler()
                scheduler.add_executor(ThreadPoolExecutor(1), "x")
                scheduler.add_job(coroutine, "interval", seconds=9, executor="x")
                """,
                "executors={'x': AsyncIOExecutor()}  # for the scheduler",
            ),
            (
                "scheduler.add_job(job, 'interval', days=1, misfire_grace_time=60)",
                "scheduler.add_job(..., start_date='2026-01-01 04:00:00')  # or ",
            ),
            ("BlockingScheduler().start()", "signal.signal(signal.SIGTERM, lambda *_: sys.exit())"),
        ],
    )
    def test_fix_can_be_used_as_it_stands(
        self, doctor: Callable[..., Any], source: str, fix: str
    ) -> None:
        """It has the alias and the kind of the executor, and what APScheduler parses."""
        [finding] = doctor(source)[1]
        assert finding["fix"].startswith(fix)

    def test_job_without_an_id_is_listed_by_name(self, doctor: Callable[..., Any]) -> None:
        """APScheduler gives it another id at each start."""
        [finding] = doctor("scheduler.add_job(job, 'cron', hour=2)")[1]
        assert finding["job_ids"] == ["job"]


class TestApplication:
    """How an application is imported."""

    def test_next_run_is_known_once_a_scheduler_was_started(
        self, doctor: Callable[..., Any]
    ) -> None:
        """Applications log it; before the start, APScheduler does not know it either."""
        status, findings = doctor(
            """
            import a_framework
            early = scheduler.add_job(job, "cron", hour=2, misfire_grace_time=60, id="early")
            assert not hasattr(early, "next_run_time")
            scheduler.start()  # shutdown
            late = scheduler.add_job(job, "cron", hour=2, misfire_grace_time=60, id="late")
            assert late.next_run_time.hour == early.next_run_time.hour == 2
            """
        )
        assert (status, findings) == (0, [])

    def test_methods_of_a_scheduler_that_runs_can_be_called(
        self, doctor: Callable[..., Any]
    ) -> None:
        """After `start()`, an application may pause, resume and wake its scheduler."""
        source = f"{STARTED}scheduler.pause(); scheduler.resume(); scheduler.wakeup()"
        assert doctor(source) == (0, [])

    def test_application_has_no_arguments(self, doctor: Callable[..., Any]) -> None:
        """A `main()` that parses its command line does not see that of the command."""
        source = """
            def main():
                import argparse
                assert argparse.ArgumentParser().parse_args() == argparse.Namespace()
            """
        arguments = sys.argv
        assert doctor(source, target="app:main()") == (0, [])
        assert sys.argv is arguments

    @pytest.mark.parametrize(
        "target", ["app", "app:scheduler", "app:holder.scheduler", "app:create()", "app:web"]
    )
    def test_target_may_be_anything_that_has_a_scheduler(
        self, doctor: Callable[..., Any], target: str
    ) -> None:
        """A scheduler, an attribute, a function that creates one, a module, an application."""
        source = """
            def create():
                global scheduler, holder
                scheduler = scheduler_of()
                scheduler.add_job(job, "cron", hour=2, id="nightly")
                holder = SimpleNamespace(scheduler=scheduler)
                return "a web application"
            web = create()
            """
        status, findings = doctor(source, target=target)
        assert (status, codes_of(findings)) == (1, {"misfire-grace-time"})

    def test_nothing_is_started_or_run(self, doctor: Callable[..., Any], tmp_path: Path) -> None:
        """Schedulers that the module starts itself, or in a thread, run no job."""
        source = """
            import atexit, threading
            for scheduler in (scheduler, BlockingScheduler(timezone="UTC")):
                scheduler.add_job(Path("ran").touch)
                scheduler.start()
                atexit.register(scheduler.shutdown)
                thread = threading.Thread(target=scheduler.start)
                thread.start()
                thread.join()
                assert not scheduler.running
            """
        doctor(source)
        assert not (tmp_path / "ran").exists()
        scheduler = BackgroundScheduler()
        scheduler.start()  # the classes are as they were before
        assert scheduler.running
        scheduler.shutdown()

    def test_ignored_code_is_not_reported(self, doctor: Callable[..., Any]) -> None:
        """--ignore may be repeated, and an ignored risk does not count."""
        source = f"{STORED}scheduler.add_job(job, 'cron', hour=2, id='a')"
        assert codes_of(doctor(source)[1]) == {"misfire-grace-time", "no-replace-existing"}
        ignored = ["--ignore", "misfire-grace-time", "--ignore", "no-replace-existing"]
        assert doctor(source, *ignored[:2])[0] == 1
        assert doctor(source, *ignored) == (0, [])

    def test_jobs_with_the_same_risk_are_one_finding(self, doctor: Callable[..., Any]) -> None:
        """Its jobs are listed."""
        [finding] = doctor(
            "for n in range(3): scheduler.add_job(job, 'cron', hour=2, minute=n, id=str(n))"
        )[1]
        assert finding["job_ids"] == ["0", "1", "2"]

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("app.py:scheduler()x", "names nothing that can be imported"),
            ("no_such_module:x", "cannot import no_such_module: ModuleNotFoundError"),
            ("app:nothing", "app has no attribute 'nothing'"),
            ("app:fail()", r"cannot import app: ZeroDivisionError: division by zero \(.*line 3\)"),
            ("app:leave()", r"cannot import app: SystemExit: 3 \(.*line 5\)"),
            ("app:fail", "app:fail has no scheduler of APScheduler 3"),
            ("app:odd()", r"cannot import app: Odd \(.*line 10\)"),
            ("app:lines()", r"cannot import app: ValueError: a b\\x1b \(.*line 12\)"),
        ],
    )
    def test_wrong_target_leads_to_one_line_and_status_2(
        self, tmp_path: Path, target: str, message: str
    ) -> None:
        """There is no traceback; the message names the line of the application."""
        (tmp_path / "app.py").write_text(
            "import sys\ndef fail():\n    1 / 0\ndef leave():\n    sys.exit(3)\n"
            "class Odd(BaseException):\n    def __str__(self):\n        return 1\n"
            "def odd():\n    raise Odd\ndef lines():\n    raise ValueError('a\\nb\\x1b')\n"
        )
        completed = run_command("doctor", target, cwd=tmp_path)
        assert (completed.returncode, completed.stdout) == (2, "")
        assert re.fullmatch(rf"apscheduler-telemetry: .*{message}.*\n", completed.stderr)

    def test_unknown_code_is_a_wrong_command_line(self, tmp_path: Path) -> None:
        """The message names the codes."""
        completed = run_command("doctor", "app", "--ignore", "typo", cwd=tmp_path)
        assert completed.returncode == 2
        assert "and-trigger-hangs" in completed.stderr

    def test_output_is_plain_text_for_a_person(self, tmp_path: Path) -> None:
        """What the application prints is not part of it, and ids cannot control a terminal."""
        (tmp_path / "app.py").write_text(
            f"{PRELUDE}print('hello')\nscheduler.add_job(job, 'cron', hour=2, id='a\\x1b[31m\\n')\n"
        )
        completed = run_command("doctor", "app:scheduler", cwd=tmp_path)
        assert completed.stderr == "hello\n"
        assert completed.stdout == (
            "serious  misfire-grace-time\n"
            "  a\\x1b[31m\\x0a\n"
            "  A run that cannot start within 1 s, which is the default, is dropped, such as when "
            "the machine is busy or all workers are.\n"
            "  scheduler.add_job(..., misfire_grace_time=3600)\n"
            "\n"
            "1 serious, 0 info\n"
        )


@pytest.mark.parametrize(
    ("directory", "target"),
    [
        ("", "dedicated_process:scheduler"),
        ("", "fastapi_app:scheduler"),
        ("", "flask_app:app"),
        ("", "one_worker:app"),
        ("gunicorn_hook", "app:scheduler"),
    ],
)
class TestExamples:
    """The examples, but for the demo, whose jobs are in trouble on purpose."""

    def test_example_has_no_risk(
        self, directory: str, target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """Wherever it runs; they are examples to follow."""
        module = target.partition(":")[0]
        for framework in ("fastapi", "flask"):
            if framework in (EXAMPLES / directory / f"{module}.py").read_text("utf-8"):
                pytest.importorskip(framework)
        monkeypatch.setenv("TZ", "Europe/Berlin")
        monkeypatch.setenv("SCHEDULER_LOCK", str(tmp_path / "lock"))
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        completed = run_command("doctor", target, cwd=EXAMPLES / directory)
        assert (completed.returncode, completed.stderr) == (0, "")
        assert completed.stdout == "No risks found\n"
