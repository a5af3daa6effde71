"""The handle: its server, what it says of wrong options, and after it has ended."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import (
    ArgumentTypeError,
    NotInstrumentedError,
    Telemetry,
    TelemetryError,
    instrument,
)
from tests.helpers.http_clients import RESPONSE_TIMEOUT, ask_wsgi
from tests.helpers.schedulers import APSCHEDULER, hand_driven_scheduler
from tests.helpers.servers import get


@pytest.fixture
def telemetry() -> Any:
    """Instrument a scheduler."""
    handle = instrument(hand_driven_scheduler(), registry=CollectorRegistry(), name="shop")
    yield handle
    handle.uninstrument()


class TestOptionsOfTheServer:
    @pytest.mark.parametrize(
        ("option", "hint"),
        [
            ("host", "pass addr="),
            ("hostname", "pass addr="),
            ("address", "pass addr="),
            ("bind", "pass addr="),
            ("adr", "pass addr="),
            ("ssl_certfile", "pass certfile="),
            ("key_file", "pass keyfile="),
            ("colour", "there are port, addr, certfile"),
        ],
    )
    def test_unknown_option_is_refused_with_the_right_one(
        self, telemetry: Telemetry, option: str, hint: str
    ) -> None:
        """The error names the option that is meant, and is a TypeError."""
        options: dict[str, Any] = {option: "127.0.0.1"}
        with pytest.raises(ArgumentTypeError, match=f"no option '{option}'; {hint}"):
            telemetry.start_http_server(0, **options)


class TestTakenPort:
    """A port that somebody else has; see also tests/end_to_end/test_development_servers.py."""

    def test_application_goes_on_and_the_log_says_why(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """An error is logged that names the port and what to do; the handle serves nothing."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with telemetry.start_http_server(port) as server:
                assert (server.is_serving, server.port) == (False, port)
                assert server.url == f"http://127.0.0.1:{port}"
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        for part in (
            "'shop' has no server",
            f"127.0.0.1:{port}",
            "another worker or the reloader of this application",
            "pass another port",
        ):
            assert part in record.getMessage()
        with telemetry.start_http_server(port) as server:
            assert server.is_serving
            assert get(f"{server.url}/metrics")[0] == 200
        assert not server.is_serving

    def test_server_of_another_scheduler_in_this_process_is_named(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The second of two schedulers is told that one server is enough."""
        with telemetry.start_http_server(0) as server:
            other = instrument(hand_driven_scheduler(), registry=CollectorRegistry(), name="bar")
            assert not other.start_http_server(server.port).is_serving
            other.uninstrument()
        [record] = caplog.records
        assert "'bar': that of the scheduler 'shop' has port" in record.getMessage()

    def test_server_at_another_address_is_not_named(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A foreign socket may have the same port at another address of this machine."""
        with (
            telemetry.start_http_server(0) as server,
            socket.create_server(("127.0.0.2", server.port)),
        ):
            assert not telemetry.start_http_server(server.port, "127.0.0.2").is_serving
        [record] = caplog.records
        assert "'shop' has no server" in record.getMessage()

    def test_server_that_was_closed_is_not_named(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A server that has been closed does not have the port any more."""
        server = telemetry.start_http_server(0)
        server.close()
        with socket.create_server(("127.0.0.1", server.port)):
            assert not telemetry.start_http_server(server.port).is_serving
        [record] = caplog.records
        assert "'shop' has no server" in record.getMessage()

    def test_server_at_another_port_is_not_named(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A server of this process at another port does not have the port that is taken."""
        with telemetry.start_http_server(0), socket.create_server(("127.0.0.1", 0)) as other:
            assert not telemetry.start_http_server(other.getsockname()[1]).is_serving
        [record] = caplog.records
        assert "'shop' has no server" in record.getMessage()

    @pytest.mark.parametrize(
        ("first", "second"),
        [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")],
    )
    def test_server_at_the_same_address_is_named(
        self, telemetry: Telemetry, caplog: pytest.LogCaptureFixture, first: str, second: str
    ) -> None:
        """Also if one of them is for all addresses."""
        with telemetry.start_http_server(0, first) as server:
            assert not telemetry.start_http_server(server.port, second).is_serving
        [record] = caplog.records
        assert "that of the scheduler 'shop' has port" in record.getMessage()

    def test_url_is_that_of_the_server_it_would_be(self, telemetry: Telemetry) -> None:
        """Options that are None are as if they were not given."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            server = telemetry.start_http_server(port, certfile=None, keyfile=None)
        assert server.url == f"http://127.0.0.1:{port}"

    def test_url_has_the_scheme_of_the_server_it_would_be(
        self, telemetry: Telemetry, tmp_path: Path
    ) -> None:
        """With a certificate it is that of HTTPS, as for a server that serves."""
        issued = pytest.importorskip("trustme").CA().issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            server = telemetry.start_http_server(port, certfile=tmp_path / "both.pem")
        assert (server.is_serving, server.url) == (False, f"https://127.0.0.1:{port}")

    def test_other_errors_are_raised(self, telemetry: Telemetry) -> None:
        """An address of another machine is an error for every process, and raised."""
        with pytest.raises(OSError, match="pass an addr of this machine"):
            telemetry.start_http_server(0, "192.0.2.1")


class TestAfterUninstrument:
    """A handle that has ended says so, and how to go on."""

    MESSAGE = r"'shop' is not instrumented.*uninstrument\(\) was called; call instrument\(\) again"

    def test_health_says_so(self, telemetry: Telemetry) -> None:
        """It is unhealthy for this reason and no other, whatever the scheduler does."""
        telemetry.uninstrument()
        report = telemetry.health()
        assert report["status"] == "unhealthy"
        [reason] = report["reasons"]
        assert reason["code"] == "uninstrumented"
        assert "call instrument() again" in reason["message"]
        assert report["jobs"] == []

    def test_server_is_refused(self, telemetry: Telemetry) -> None:
        """It starts no server that would have nothing to show."""
        telemetry.uninstrument()
        with pytest.raises(NotInstrumentedError, match=self.MESSAGE) as info:
            telemetry.start_http_server(0)
        assert isinstance(info.value, TelemetryError)

    def test_pages_that_are_mounted_say_so(self) -> None:
        """The applications that are mounted somewhere answer 503, though the scheduler runs."""
        scheduler = hand_driven_scheduler()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.start()
        for path in ("/health", "/livez"):
            assert ask_wsgi(telemetry.wsgi_app, path).status == 200
        telemetry.uninstrument()
        for path in ("/health", "/livez"):
            assert ask_wsgi(telemetry.wsgi_app, path).status == 503
        assert "uninstrumented" in ask_wsgi(telemetry.wsgi_app, "/health").text
        scheduler.shutdown()

    def test_server_is_closed(self, telemetry: Telemetry) -> None:
        """A server that the handle has started ends with it."""
        server = telemetry.start_http_server(0)
        telemetry.uninstrument()
        assert not server.is_serving
        socket.create_server((server.addr, server.port)).close()

    def test_repr_says_so(self, telemetry: Telemetry) -> None:
        """So does its repr()."""
        assert "uninstrumented" not in repr(telemetry)
        telemetry.uninstrument()
        assert "uninstrumented" in repr(telemetry)


class TestStartWithoutAnEventLoop:
    """`AsyncIOScheduler.start()` outside of a coroutine, which APScheduler 3.11 refuses."""

    @pytest.mark.skipif(APSCHEDULER < (3, 11), reason="it makes an event loop")
    def test_error_has_a_note(self) -> None:
        """The exception is APScheduler's own, with a note that says where to call it."""
        scheduler = AsyncIOScheduler()
        instrument(scheduler, registry=CollectorRegistry())
        with pytest.raises(RuntimeError) as info:
            scheduler.start()
        assert type(info.value) is RuntimeError
        assert str(info.value) == "no running event loop"
        if sys.version_info >= (3, 11):
            [note] = info.value.__notes__
            assert "call it in a coroutine" in note

    def test_other_errors_have_none(self) -> None:
        """What is raised where an event loop runs is left as it is."""

        class BrokenExecutor(AsyncIOExecutor):
            def start(self, *_args: Any) -> None:
                msg = "can't start new thread"
                raise RuntimeError(msg)

        async def main() -> None:
            scheduler = AsyncIOScheduler(executors={"default": BrokenExecutor()})
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            with pytest.raises(RuntimeError, match="can't start new thread") as broken:
                scheduler.start()
            assert getattr(broken.value, "__notes__", []) == []
            telemetry.uninstrument()

            scheduler = AsyncIOScheduler()
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.start()
            with pytest.raises(Exception, match="already running") as info:
                scheduler.start()
            assert getattr(info.value, "__notes__", []) == []
            scheduler.shutdown()
            await asyncio.sleep(0)
            telemetry.uninstrument()

        asyncio.run(asyncio.wait_for(main(), RESPONSE_TIMEOUT))
