"""Clients that send invalid data, are slow or silent, or are too many."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from apscheduler_telemetry import errors
from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from apscheduler_telemetry.http.connections import ConnectionTracker
from apscheduler_telemetry.http.limits import ServerLimits
from tests.helpers.collectors import ReportedErrors
from tests.helpers.http_clients import (
    GET_METRICS,
    RESPONSE_TIMEOUT,
    address,
    fetch,
    read_all,
    send_raw,
)
from tests.helpers.waiting import wait_until


class TestHostileClients:
    @pytest.fixture(autouse=True)
    def server_is_intact(
        self, server: HTTPServer, failures: ReportedErrors, capfd: pytest.CaptureFixture[str]
    ) -> Iterator[None]:
        """After each test the server still works, and nothing was printed or reported."""
        yield
        assert fetch(server).status == 200
        server.close()
        assert capfd.readouterr().err == ""
        assert failures == []

    @pytest.mark.parametrize(
        ("sent_bytes", "status"),
        [
            (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", 431),
            (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
            (b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", 414),
            (b"GET\r\n\r\n", 400),
            (b"GET /metrics HTTP/x.y\r\n\r\n", 400),
            (b"GET /metrics HTTP/9.9\r\n\r\n", 505),
            (b"GET /metrics is what I want HTTP/1.1\r\n\r\n", 400),
            (b"BREW /metrics HTTP/1.1\r\n\r\n", 405),
            (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
            (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
            (b"GET /%zz%ff%00%0d%0aX:%20y HTTP/1.1\r\n\r\n", 404),
            (b"GET /\xff\xfe HTTP/1.1\r\n\r\n", 404),
            (b"GET /metrics?%zz&name=\xff&&== HTTP/1.1\r\n\r\n", 200),
            (b"GET /metrics HTTP/1.1\r\nX: \xfe\xff\r\nAccept: \xff\r\n\r\n", 200),
            (b"GET /metrics HTTP/1.1\r\nX-\xff: y\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nno colon here\r\nHost: x\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\n: no name\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nX: a fold\r\n of 1999\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nX: a nought\0\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (b"GET /metrics HTTP/1.1\r\nContent-Length: 0 \r\n\r\n", 200),
            (b"GET /metrics HTTP/1.1\r\nAccept: " + b"a/b;q=x," * 3000 + b"\r\n\r\n", 200),
            (b"GET /metrics HTTP/1.1\r\nConnection: keep-alive\r\n\r\n" + GET_METRICS, 200),
            (b"GET http:///metrics HTTP/1.1\r\n\r\n", 404),
        ],
        ids=lambda value: value[:40] if isinstance(value, bytes) else None,
    )
    def test_malformed_request_gets_one_response(
        self, server: HTTPServer, sent_bytes: bytes, status: int
    ) -> None:
        """A malformed request gets exactly one well-formed response."""
        answer = send_raw(address(server), sent_bytes)

        # A reset may arrive before the response if the server did not read everything.
        assert not answer or answer.startswith(b"HTTP/1.0 %d " % status)
        assert answer.count(b"runs_total{") == (status == 200)
        assert b"Traceback" not in answer

    @pytest.mark.parametrize(
        "sent_bytes",
        [
            b"",
            b"\r\n\r\n",
            b"\x00" * 1000,
            random.Random(7).randbytes(5000),
            bytes.fromhex("16030100c8010000c40303") + b"\x42" * 200,  # TLS ClientHello
            b"GE",
        ],
        ids=["nothing", "empty lines", "zeros", "noise", "TLS", "half a line"],
    )
    def test_bytes_that_are_not_http_get_400_or_are_cut(
        self, server: HTTPServer, sent_bytes: bytes
    ) -> None:
        """Bytes that are not HTTP lead to a 400, or to the end of the connection."""
        answer = send_raw(address(server), sent_bytes)

        assert not answer or answer.startswith(b"HTTP/1.0 400 ")

    def test_http_09_request_gets_a_response(self, server: HTTPServer) -> None:
        """A request of HTTP 0.9 gets a response."""
        assert b"runs_total" in send_raw(address(server), b"GET /metrics\r\n")

    def test_client_may_reset_the_connection(self, server: HTTPServer) -> None:
        """A client may reset the connection before or during the response."""
        for sent_bytes in (b"", b"GET /metrics HTTP/1.1\r\nHo", GET_METRICS):
            connection = socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT)
            connection.sendall(sent_bytes)
            # Closing with a linger time of 0 sends a reset.
            linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()


class TestLimits:
    """Limits of a server, which its options set."""

    def test_silent_client_is_disconnected_and_blocks_no_other(
        self, endpoints: HTTPEndpoints, failures: ReportedErrors
    ) -> None:
        """A silent client blocks no other client, and is disconnected after a timeout."""
        with (
            endpoints.start_server(0, idle_timeout=0.1) as server,
            socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as silent,
        ):
            assert fetch(server).status == 200
            assert read_all(silent) == b""
        assert failures == []

    def test_slow_client_is_disconnected(
        self,
        endpoints: HTTPEndpoints,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A client that sends single bytes is disconnected after a timeout."""
        idle_timeout = RESPONSE_TIMEOUT * 10  # which cannot be what ends the connection
        # The other part of the age of a connection; so the age is 0.1 seconds.
        monkeypatch.setattr(limits, "RENDER_TIMEOUT_SECONDS", 0.1 - 2 * idle_timeout)
        with (
            endpoints.start_server(0, idle_timeout=idle_timeout) as server,
            socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as slow,
        ):
            sent = itertools.count()

            def is_disconnected() -> bool:
                try:
                    slow.sendall(b"x")
                except ConnectionError:
                    return True
                assert next(sent) < limits.MAX_REQUEST_HEAD_BYTES, "the end of the largest head"
                return False

            wait_until(is_disconnected, "the end of the connection")
        assert failures == []

    def test_client_that_does_not_read_is_disconnected(
        self, endpoints: HTTPEndpoints, failures: ReportedErrors, registry: CollectorRegistry
    ) -> None:
        """A client that does not read the response is disconnected after a timeout."""
        big = Gauge("big", "Big.", ["text"], registry=registry)
        big.labels(text="x" * 20_000_000)
        with (
            endpoints.start_server(0, idle_timeout=0.1) as server,
            socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as not_reading,
        ):
            not_reading.sendall(GET_METRICS)
            wait_until(lambda: server._server.connections, "the connection")
            wait_until(lambda: not server._server.connections, "the end of the connection")
        assert failures == []

    def test_oldest_silent_clients_are_disconnected_for_new_ones(
        self, endpoints: HTTPEndpoints, failures: ReportedErrors
    ) -> None:
        """If there are too many silent clients, the oldest are disconnected for new ones."""
        with (
            endpoints.start_server(0, max_connections=20) as server,
            contextlib.ExitStack() as stack,
        ):
            silent = [
                stack.enter_context(
                    socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT)
                )
                for _ in range(60)
            ]
            assert fetch(server).status == 200
            assert read_all(silent[0]) == b""
            wait_until(
                lambda: len(server._server.connections) <= 20, "the end of the excess connections"
            )
        assert {component for component, _ in failures} == {"http"}
        assert "start_http_server(max_connections=...)" in str(failures[0][1])

    def test_connection_may_be_idle_before_and_after_its_response(
        self, endpoints: HTTPEndpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The greatest age of a connection leaves time for a slow request and a slow reader."""
        monkeypatch.setattr(
            limits, "RENDER_TIMEOUT_SECONDS", 0.0
        )  # part of the age of a connection
        with (
            endpoints.start_server(0) as server,
            socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as idle,
        ):
            wait_until(lambda: server._server.connections, "the connection")
            server._server.connections.enforce_limits()
            idle.sendall(GET_METRICS)
            assert read_all(idle).startswith(b"HTTP/1.0 ")

    def test_excess_connection_is_counted_once(self, failures: ReportedErrors) -> None:
        """A connection that is closed for a new one counts once, however long its thread takes."""
        tracker = ConnectionTracker(ServerLimits(max_connections=2), failures)
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                for end in socket.socketpair():
                    stack.enter_context(end)
                tracker.add(end)
            for _ in range(3):
                tracker.enforce_limits()
            assert len(tracker) == 2
        assert len(failures) == 1

    def test_connection_that_is_closed_keeps_no_other_open(self, failures: ReportedErrors) -> None:
        """All connections end, also if one of them has just been closed by its client."""
        tracker = ConnectionTracker(ServerLimits(), failures)
        closed, (ours, theirs) = socket.socket(), socket.socketpair()
        closed.close()
        with ours, theirs:
            for connection in (closed, ours):
                tracker.add(connection)
            tracker.shutdown_all()
            assert read_all(theirs) == b""

    @pytest.mark.parametrize(
        ("options", "error"),
        [
            ({"max_connections": 0}, errors.ArgumentValueError),
            ({"max_connections": 1.5}, errors.ArgumentTypeError),
            ({"max_connections": True}, errors.ArgumentTypeError),
            pytest.param(
                {"max_connections": 10**400},
                errors.ArgumentValueError,
                id="max_connections too large",
            ),
            pytest.param(
                {"idle_timeout": 10**400}, errors.ArgumentValueError, id="idle_timeout too large"
            ),
            ({"idle_timeout": -1}, errors.ArgumentValueError),
            ({"idle_timeout": float("nan")}, errors.ArgumentValueError),
            ({"idle_timeout": float("inf")}, errors.ArgumentValueError),
            ({"idle_timeout": None}, errors.ArgumentTypeError),
            ({"max_buffered_bytes": 0}, errors.ArgumentValueError),
            ({"max_buffered_bytes": "32 MB"}, errors.ArgumentTypeError),
        ],
        ids=str,
    )
    def test_impossible_limit_raises_an_error_that_says_what_to_pass(
        self, endpoints: HTTPEndpoints, options: dict[str, Any], error: type[Exception]
    ) -> None:
        """An impossible limit raises an error that says what to pass."""
        with pytest.raises(error, match=rf"{next(iter(options))}.*pass"):
            endpoints.start_server(0, **options)
