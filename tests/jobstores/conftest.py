"""
Job stores for tests, and a frozen clock.

The libraries of the stores are imported where they are used, because tests skip without them.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from tests.helpers.clocks import FrozenClock, freeze_time

if TYPE_CHECKING:
    from tests.helpers.jobstore_servers import Place, Postgres, Proxy, RedisServer, Rows

_number = itertools.count()


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; `make test` installs it where it may")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    from tests.helpers.jobstore_servers import Postgres

    needs("initdb")
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    from tests.helpers.jobstore_servers import RedisServer

    needs("redis-server")
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return a new place for jobs, of the kind that the test asks for."""
    from tests.helpers.jobstore_servers import File, Keys, Table

    name = f"jobs_{next(_number)}"
    if kind == "postgres":
        return Table(request.getfixturevalue("postgres"), name)
    if kind == "redis":
        return Keys(request.getfixturevalue("redis_server"), name)
    return File(tmp_path)


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    from tests.helpers.jobstore_servers import Proxy

    proxy = Proxy(place.server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read stores more often than every five seconds."""
    from tests.helpers.shared_jobstores import SOON

    monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL_SECONDS", SOON)
    monkeypatch.setattr(JobStorePoller, "MAX_DUTY_CYCLE", 0.5)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    """Return a job store in a SQLite file."""
    from tests.helpers.jobstore_servers import Rows

    rows = Rows(tmp_path)
    yield rows
    rows.engine.dispose()


@pytest.fixture
def clock() -> Iterator[FrozenClock]:
    with freeze_time() as clock:
        yield clock
