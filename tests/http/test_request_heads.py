"""The request line and the headers of requests to the built-in server."""

from __future__ import annotations

import http.client
import io
import socket
import tracemalloc
from typing import Any

import pytest

from apscheduler_telemetry.http import HTTPServer, limits
from apscheduler_telemetry.http.wsgi_server import RequestHandler
from tests.helpers.collectors import ReportedErrors
from tests.helpers.http_clients import RESPONSE_TIMEOUT, address, read_all, send_raw


class TestHeadOfARequest:
    """The request line and the headers, which are limited together."""

    START = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"

    @pytest.fixture
    def parsed(self, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
        """Return the heads that are parsed from now on."""
        heads: list[bytes] = []
        parse_headers = http.client.parse_headers

        def record(stream: Any, *args: Any, **kwargs: Any) -> Any:
            head = stream.read()
            heads.append(head)
            return parse_headers(io.BytesIO(head), *args, **kwargs)

        monkeypatch.setattr(http.client, "parse_headers", record)
        return heads

    def test_largest_head_is_accepted(self, server: HTTPServer) -> None:
        """A head of just the limit is answered."""
        rest = limits.MAX_REQUEST_HEAD_BYTES - len(self.START) - len(b"X: \r\n\r\n")
        sent = self.START + b"X: " + b"x" * rest + b"\r\n\r\n"
        assert len(sent) == limits.MAX_REQUEST_HEAD_BYTES
        assert send_raw(address(server), sent).startswith(b"HTTP/1.0 200 ")

    @pytest.mark.parametrize(
        ("sent", "status"),
        [
            (START + b"X: " + b"x" * limits.MAX_REQUEST_HEAD_BYTES, 431),
            (START + b"".join(b"X-%d: %s\r\n" % (i, b"x" * 400) for i in range(90)), 431),
            (START + b"X: " + b"x" * 60_000 + b"\r\n\r\n", 431),
            (b"GET /livez?" + b"x" * limits.MAX_REQUEST_HEAD_BYTES + b" HTTP/1.1\r\n\r\n", 414),
            (
                b"GET /livez?%s HTTP/1.1\r\n" % (b"x" * 20_000)
                + b"X: %s\r\n\r\n" % (b"x" * 20_000),
                431,
            ),
        ],
        ids=["one header", "many headers", "ended", "target", "target and header"],
    )
    def test_larger_head_is_rejected_before_it_ends(
        self,
        server: HTTPServer,
        parsed: list[bytes],
        failures: ReportedErrors,
        sent: bytes,
        status: int,
    ) -> None:
        """A larger head is rejected at the limit, whether it ends or not, and is not parsed."""
        with socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as connection:
            connection.sendall(sent[: limits.MAX_REQUEST_HEAD_BYTES + 1])
            assert read_all(connection).startswith(b"HTTP/1.0 %d " % status)
        assert parsed == []
        assert failures == []

    def test_many_large_heads_take_little_memory(self, server: HTTPServer) -> None:
        """No more than the limit is kept for each client, whatever clients send."""
        size, clients = 2_000_000, 10
        lines = b"".join(b"X-%d: %s\r\n" % (i, b"x" * 40_000) for i in range(size // 40_000))
        tracemalloc.start()
        try:
            for _ in range(clients):
                send_raw(address(server), self.START, lines)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    def test_short_lines_take_no_more_memory_than_long_ones(self) -> None:
        """A head of very short lines is kept in about as many bytes as it has."""
        sent = io.BytesIO(b"a\n" * (limits.MAX_REQUEST_HEAD_BYTES // 2))
        tracemalloc.start()
        try:
            RequestHandler._read_head(sent)
            assert tracemalloc.get_traced_memory()[1] < 4 * limits.MAX_REQUEST_HEAD_BYTES
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("end", [b"", b"\r\n", b"\r\nX: y", b"\r\nX: y\r\n"])
    def test_head_of_a_client_that_hangs_up_is_not_parsed(
        self, server: HTTPServer, parsed: list[bytes], end: bytes
    ) -> None:
        """If the client stops sending before the end of the head, the connection is closed."""
        assert send_raw(address(server), self.START + b"X: y" + end) == b""
        assert parsed == []

    @pytest.mark.parametrize("value", [b"a\rb", b"\r" * 1000, b"a\rHost: other\rX: y"])
    def test_carriage_return_ends_no_line(
        self, server: HTTPServer, parsed: list[bytes], value: bytes
    ) -> None:
        """A carriage return without a line feed is malformed (RFC 9112, section 2.2)."""
        answer = send_raw(address(server), self.START + b"X: " + value + b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 400 ")
        assert parsed == []

    @pytest.mark.parametrize("end", [b"\r\n", b"\n"])
    def test_empty_line_before_the_request_is_ignored(self, server: HTTPServer, end: bytes) -> None:
        """An empty line before the request line is ignored (RFC 9112, section 2.2)."""
        sent = end + self.START + b"\r\n"
        assert send_raw(address(server), sent).startswith(b"HTTP/1.0 200 ")

    @pytest.mark.parametrize("lines", [1, 2, 100_000])
    def test_empty_lines_without_a_request_get_no_answer(
        self, server: HTTPServer, parsed: list[bytes], lines: int
    ) -> None:
        """The connection is closed, and nothing is parsed."""
        assert send_raw(address(server), b"\r\n" * lines) == b""
        assert parsed == []

    def test_client_that_speaks_tls_need_not_wait(self, server: HTTPServer) -> None:
        """Bytes of another protocol are rejected at once, although no empty line will follow."""
        client_hello = bytes.fromhex("16030100c8010000c40303") + b"\x42" * 100 + b"\n" + b"\0" * 99
        with socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as connection:
            connection.sendall(client_hello)
            assert read_all(connection).startswith(b"HTTP/1.0 400 ")

    @pytest.mark.parametrize(
        "header", [b"Content-Length: 999999999999", b"Transfer-Encoding: chunked"]
    )
    def test_body_is_not_read(self, server: HTTPServer, header: bytes) -> None:
        """The response does not wait for a body."""
        with socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as connection:
            connection.sendall(self.START + header + b"\r\n\r\n")
            assert read_all(connection).startswith(b"HTTP/1.0 200 ")
