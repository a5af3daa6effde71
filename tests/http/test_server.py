"""The built-in server: addresses, ports, closing and forks."""

from __future__ import annotations

import concurrent.futures
import errno
import os
import socket
import threading
import time
from typing import Any

import pytest

from apscheduler_telemetry import errors
from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer
from tests.helpers.http_clients import HEALTHY, RESPONSE_TIMEOUT, address, fetch, read_all, send_raw


class TestServe:
    def test_server_serves_all_pages_on_loopback(self, server: HTTPServer) -> None:
        """The server serves all pages on the loopback, and the handle has its address."""
        assert server.addr == "127.0.0.1"
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert "runs_total" in fetch(server).text
        assert fetch(server, "/health").json == HEALTHY
        assert fetch(server, "/").status == 200

    def test_hundred_concurrent_clients_succeed(self, server: HTTPServer) -> None:
        """A hundred concurrent clients all succeed."""
        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            replies = list(pool.map(lambda _: fetch(server), range(200)))

        assert {reply.status for reply in replies} == {200}

    def test_ipv6_address_works(self, endpoints: HTTPEndpoints) -> None:
        """An IPv6 address works, and stands in brackets in the URL."""
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 here")
        with endpoints.start_server(0, "::1") as server:
            assert server.url == f"http://[::1]:{server.port}"
            assert fetch(server).status == 200

    def test_close_frees_the_port(self, endpoints: HTTPEndpoints) -> None:
        """A closed port can be served again immediately."""
        with endpoints.start_server(0) as server:
            port = server.port
        for _ in range(10):
            server = endpoints.start_server(port)
            assert fetch(server).status == 200
            server.close()
            server.close()
            with pytest.raises(ConnectionRefusedError):
                send_raw(address(server))

    def test_close_does_not_wait_for_clients(self, endpoints: HTTPEndpoints) -> None:
        """Closing waits neither for a silent client nor for one in the middle of a request."""
        server = endpoints.start_server(0)
        silent = socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT)
        halfway = socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT)
        halfway.sendall(b"GET /metrics HTTP/1.1\r\nHo")
        fetch(server)  # after this response the others have been accepted
        began = time.monotonic()

        server.close()

        assert time.monotonic() - began < RESPONSE_TIMEOUT / 2
        for connection in (silent, halfway):
            assert read_all(connection) == b""
            connection.close()

    def test_several_threads_may_close_at_once(self, endpoints: HTTPEndpoints) -> None:
        """Several threads may close concurrently; all return when the port is free."""
        server = endpoints.start_server(0)
        closing = [threading.Thread(target=server.close) for _ in range(5)]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(RESPONSE_TIMEOUT)
        assert not any(thread.is_alive() for thread in closing)
        endpoints.start_server(server.port).close()

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_forked_child_that_closes_does_not_affect_the_parent(
        self, endpoints: HTTPEndpoints
    ) -> None:
        """A forked child that closes its copy of the server affects neither port nor parent."""
        read_end, write_end = os.pipe()
        with endpoints.start_server(0) as server:
            pid = os.fork()
            if not pid:
                server.close()
                os.read(read_end, 1)
                os._exit(0)
            try:
                assert fetch(server).status == 200
                server.close()
                endpoints.start_server(server.port).close()
            finally:
                os.write(write_end, b"x")
                os.waitpid(pid, 0)
                os.close(read_end)
                os.close(write_end)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_forked_child_does_not_hold_the_port(self, endpoints: HTTPEndpoints) -> None:
        """A forked child that outlives its parent does not hold the port."""
        port_read, port_write = os.pipe()
        end_read, end_write = os.pipe()
        pid = os.fork()
        if not pid:
            server = endpoints.start_server(0)
            if os.fork():
                os._exit(0)  # like a killed process, closes nothing
            os.close(end_write)
            os.write(port_write, str(server.port).encode())
            os.read(end_read, 1)
            os._exit(0)
        try:
            os.waitpid(pid, 0)
            endpoints.start_server(int(os.read(port_read, 10))).close()
        finally:
            for end in (port_read, port_write, end_read, end_write):
                os.close(end)

    def test_taken_port_raises_an_error_with_advice(
        self, endpoints: HTTPEndpoints, server: HTTPServer
    ) -> None:
        """A taken port raises an error that names the port and says what to do."""
        with pytest.raises(
            OSError, match=rf"127\.0\.0\.1:{server.port}.*pass another port"
        ) as info:
            endpoints.start_server(server.port)

        assert info.value.errno == errno.EADDRINUSE

    @pytest.mark.parametrize("addr", ["192.0.2.1", "no such host", "x" * 70, "a\0b"])
    def test_address_of_another_machine_raises_an_error_with_advice(
        self, endpoints: HTTPEndpoints, addr: str
    ) -> None:
        """An address of another machine raises an error that says what to pass."""
        with pytest.raises(OSError, match="pass an addr of this machine"):
            endpoints.start_server(0, addr)

    @pytest.mark.parametrize("port", ["9476", 9476.0, None, True])
    def test_port_of_a_wrong_type_raises_an_error_with_advice(
        self, endpoints: HTTPEndpoints, port: Any
    ) -> None:
        """A port that is not an int raises an error that says what to pass."""
        with pytest.raises(errors.ArgumentTypeError, match="pass one of 0 to 65535"):
            endpoints.start_server(port)

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_port_out_of_range_raises_an_error_with_advice(
        self, endpoints: HTTPEndpoints, port: int
    ) -> None:
        """A port out of range raises an error that says what to pass."""
        with pytest.raises(errors.ArgumentValueError, match="pass one of 0 to 65535"):
            endpoints.start_server(port)

    @pytest.mark.parametrize("addr", [None, 127, b"127.0.0.1"])
    def test_addr_of_a_wrong_type_raises_an_error_with_advice(
        self, endpoints: HTTPEndpoints, addr: Any
    ) -> None:
        """An address that is not a str raises an error that says what to pass."""
        with pytest.raises(errors.ArgumentTypeError, match=r"'127\.0\.0\.1'"):
            endpoints.start_server(0, addr)

    def test_empty_addr_raises_an_error(self, endpoints: HTTPEndpoints) -> None:
        """An empty address raises: listening on all addresses must be explicit."""
        with pytest.raises(errors.ArgumentValueError, match=r"'0\.0\.0\.0'"):
            endpoints.start_server(0, "")
