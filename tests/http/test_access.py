"""Who may use the built-in server: bearer tokens and host names."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry import errors
from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from apscheduler_telemetry.http.access import MAX_TOKEN_FILE_BYTES
from tests.helpers.collectors import ReportedErrors
from tests.helpers.faults import failing_open
from tests.helpers.http_clients import RESPONSE_TIMEOUT, address, fetch, send_raw

TOKEN = "c0ffee-._~+/="
PASSING_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES)
"""What may end without a change of the file, as access that a security module denies."""


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    return path


@pytest.fixture
def protected(endpoints: HTTPEndpoints, token_file: Path) -> Iterator[HTTPServer]:
    with endpoints.start_server(0, bearer_token_file=token_file) as server:
        yield server


def status_with_token(server: HTTPServer, token: str, path: str = "/metrics") -> int:
    return fetch(server, path, headers={"Authorization": f"Bearer {token}"}).status


def status_with_host(server: HTTPServer, host: str) -> int:
    answer = send_raw(address(server), f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    return int(answer.split()[1])


class TestBearerToken:
    @pytest.mark.parametrize(
        "path", ["/metrics", "/health", "/", "/nothing", "/livez/metrics", "/metrics/livez"]
    )
    def test_client_with_the_token_is_served(self, protected: HTTPServer, path: str) -> None:
        """A client that sends the token is served; others get a 401 that names the scheme."""
        assert status_with_token(protected, TOKEN, path) in (200, 404)
        reply = fetch(protected, path)
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        assert "bearer_token_file" in reply.text
        assert TOKEN not in reply.text

    @pytest.mark.parametrize(
        "authorization",
        [
            "",
            "Bearer",
            "Bearer ",
            f"Basic {TOKEN}",
            TOKEN,
            f"Bearer {TOKEN}x",
            f"Bearer {TOKEN[:-1]}",
            f"Bearer {TOKEN} {TOKEN}",
            f"Bearer {TOKEN}, Bearer {TOKEN}",
            "Bearer \xff\xfe",
        ],
    )
    def test_wrong_authorization_is_rejected(
        self, protected: HTTPServer, authorization: str
    ) -> None:
        """A wrong token, another scheme and a malformed header are rejected."""
        assert fetch(protected, headers={"Authorization": authorization}).status == 401

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER  "])
    def test_scheme_is_case_insensitive(self, protected: HTTPServer, scheme: str) -> None:
        """The name of the scheme may be in lower case or upper case, as RFC 9110 has it."""
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        assert fetch(protected, headers=headers).status == 200

    @pytest.mark.parametrize("path", ["/livez", "/livez/"])
    def test_livez_needs_no_token(self, protected: HTTPServer, path: str) -> None:
        """Probes, which cannot send a secret, may use ``/livez``."""
        assert fetch(protected, path).status == 200

    def test_rejected_client_costs_no_rendering(
        self, endpoints: HTTPEndpoints, token_file: Path, hanging: Any
    ) -> None:
        """Nothing is rendered for a client without the token."""
        with endpoints.start_server(0, bearer_token_file=token_file) as server:
            assert fetch(server).status == 401
        assert not hanging.entered.acquire(blocking=False)

    def test_rejection_of_head_has_no_body(self, protected: HTTPServer) -> None:
        """A rejected ``HEAD`` request gets the headers only."""
        answer = send_raw(address(protected), b"HEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 401 ")
        assert answer.endswith(b"\r\n\r\n")

    @pytest.mark.parametrize("replace", [Path.write_text, None], ids=["written", "renamed"])
    def test_changed_file_is_read_again(
        self, protected: HTTPServer, token_file: Path, replace: Callable[..., Any] | None
    ) -> None:
        """A token that is written to the file, or renamed to it, is valid at once."""
        if replace is None:
            other = token_file.with_name("new")
            other.write_text("other")
            other.replace(token_file)
        else:
            replace(token_file, "other")

        assert status_with_token(protected, "other") == 200
        assert status_with_token(protected, TOKEN) == 401

    def test_file_with_the_time_and_size_of_the_former_is_read(
        self, protected: HTTPServer, token_file: Path
    ) -> None:
        """A file of the same size and time is noticed, as tools that copy files keep the time."""
        other = token_file.with_name("new")
        other.write_text(f"{TOKEN[::-1]}\n")
        shutil.copystat(token_file, other)
        other.replace(token_file)

        assert status_with_token(protected, TOKEN[::-1]) == 200
        assert status_with_token(protected, TOKEN) == 401

    def test_link_to_another_directory_is_followed(
        self, endpoints: HTTPEndpoints, tmp_path: Path
    ) -> None:
        """A link whose target is replaced is followed, as Kubernetes updates secrets."""
        for number in (1, 2):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "token").write_text(f"token{number}")
        (tmp_path / "data").symlink_to("1")
        (tmp_path / "token").symlink_to(Path("data") / "token")
        with endpoints.start_server(0, bearer_token_file=tmp_path / "token") as server:
            assert status_with_token(server, "token1") == 200
            (tmp_path / "new").symlink_to("2")
            (tmp_path / "new").replace(tmp_path / "data")
            assert status_with_token(server, "token2") == 200
            assert status_with_token(server, "token1") == 401

    @pytest.mark.parametrize("damage", ["missing", "empty", "two lines", "directory"])
    def test_file_that_becomes_unusable_leaves_the_token_valid(
        self, protected: HTTPServer, token_file: Path, failures: ReportedErrors, damage: str
    ) -> None:
        """If the file becomes unusable, its last token stays valid, and one error is counted."""
        token_file.unlink()
        if damage == "directory":
            token_file.mkdir()
        elif damage != "missing":
            token_file.write_text({"empty": " \n", "two lines": "a\nb"}[damage])

        for _ in range(3):
            assert status_with_token(protected, TOKEN) == 200
            assert fetch(protected).status == 401
        assert [component for component, _ in failures] == ["http"]

    @pytest.mark.parametrize("code", PASSING_ERRORS, ids=errno.errorcode.get)
    def test_file_that_cannot_be_opened_for_a_while_is_tried_again(
        self,
        protected: HTTPServer,
        token_file: Path,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
        code: int,
    ) -> None:
        """A new token is valid once its file can be opened; until then one error is counted."""
        monkeypatch.setattr(limits, "FILE_RETRY_SECONDS", 0.0)
        token_file.write_text("other")
        with failing_open(token_file, code):
            for _ in range(3):
                assert status_with_token(protected, TOKEN) == 200
        assert status_with_token(protected, "other") == 200
        assert status_with_token(protected, TOKEN) == 401
        assert [component for component, _ in failures] == ["http"]

    def test_file_that_cannot_be_opened_is_not_tried_for_each_request(
        self, protected: HTTPServer, token_file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The file is tried again after a while, or when it changes, and not for each request."""
        monkeypatch.setattr(limits, "FILE_RETRY_SECONDS", RESPONSE_TIMEOUT * 10)
        token_file.write_text("other")
        with failing_open(token_file, errno.EMFILE):
            assert status_with_token(protected, TOKEN) == 200
        assert status_with_token(protected, "other") == 401
        token_file.write_text("third")
        assert status_with_token(protected, "third") == 200

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            (b"", errors.ArgumentValueError),
            (b" \n", errors.ArgumentValueError),
            (b"a b", errors.ArgumentValueError),
            (b"a\nb", errors.ArgumentValueError),
            (b"\xff\xfe", errors.ArgumentValueError),
            (None, FileNotFoundError),
        ],
    )
    def test_file_without_a_token_raises_an_error(
        self,
        endpoints: HTTPEndpoints,
        tmp_path: Path,
        content: bytes | None,
        error: type[Exception],
    ) -> None:
        """A file without one token is an error at the start, which does not show the content."""
        path = tmp_path / "secret"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(error, match=re.escape(str(path))):
            endpoints.start_server(0, bearer_token_file=path)

    def test_large_file_is_not_read_as_a_whole(
        self, endpoints: HTTPEndpoints, tmp_path: Path
    ) -> None:
        """Of a large file, which can be no token, only the start is read."""
        with (tmp_path / "large").open("wb") as file:
            file.truncate(50_000_000)
        tracemalloc.start()
        try:
            with pytest.raises(errors.ArgumentValueError, match="one token"):
                endpoints.start_server(0, bearer_token_file=tmp_path / "large")
            assert tracemalloc.get_traced_memory()[1] < 5_000_000
        finally:
            tracemalloc.stop()

    def test_fifo_raises_an_error(self, endpoints: HTTPEndpoints, tmp_path: Path) -> None:
        """A FIFO raises an error instead of being opened, which would wait for its writer."""
        if not hasattr(os, "mkfifo"):
            pytest.skip("no FIFO here")
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(errors.ArgumentValueError, match="regular file"):
            endpoints.start_server(0, bearer_token_file=tmp_path / "fifo")

    def test_token_instead_of_a_path_raises_an_error(self, endpoints: HTTPEndpoints) -> None:
        """A value that is no path raises an error."""
        with pytest.raises(errors.ArgumentTypeError, match="pass the path of a file"):
            endpoints.start_server(0, bearer_token_file=b"x")  # type: ignore[arg-type]


class TestAllowedHosts:
    LOOPBACK = (
        "localhost",
        "LocalHost:9476",
        "localhost.",
        "app.localhost:80",
        "127.0.0.1:9476",
        "127.0.0.2",
        "[::1]:9476",
        "[::1]",
        "[::ffff:127.0.0.1]:9476",
    )
    OTHERS = (
        "evil.example",
        "evil.example:9476",
        "localhost.evil.example",
        "evillocalhost",
        "127.0.0.1.evil.example",
        "192.168.1.5",
        "[2001:db8::1]:80",
        "localhost, evil.example",
        "localhost:80:80",
        "[::1",
        "[::1x",
        "",
    )

    @pytest.mark.parametrize("host", LOOPBACK)
    def test_names_of_the_loopback_are_allowed(self, server: HTTPServer, host: str) -> None:
        """A server on the loopback can be called by all names and addresses of the loopback."""
        assert status_with_host(server, host) == 200

    @pytest.mark.parametrize("host", OTHERS)
    def test_other_names_are_rejected_on_the_loopback(self, server: HTTPServer, host: str) -> None:
        """A server on the loopback rejects other names, as DNS rebinding needs one."""
        assert status_with_host(server, host) == 421

    def test_name_that_the_server_listens_on_is_allowed(
        self, endpoints: HTTPEndpoints, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server on a name of the loopback, as in ``/etc/hosts``, can be called by that name."""
        resolve = socket.getaddrinfo

        def resolve_name_of_the_machine(host: Any, *args: Any, **kwargs: Any) -> Any:
            return resolve("127.0.0.1" if host == "pod.example" else host, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", resolve_name_of_the_machine)
        with endpoints.start_server(0, "pod.example") as server:
            assert status_with_host(server, "pod.example:9476") == 200
            assert status_with_host(server, "evil.example") == 421

    def test_rejection_says_which_option_allows_the_name(self, server: HTTPServer) -> None:
        """The response to another name says which option allows it, for all pages."""
        for path in ("/metrics", "/health", "/livez", "/"):
            reply = fetch(server, path, headers={"Host": "evil.example"})
            assert reply.status == 421
            assert "start_http_server(allowed_hosts=[...])" in reply.text

    def test_request_without_a_host_is_allowed(self, server: HTTPServer) -> None:
        """A request without a ``Host`` header is allowed, as every browser sends one."""
        assert send_raw(address(server), b"GET /livez HTTP/1.0\r\n\r\n").split()[1] == b"200"

    @pytest.mark.parametrize("host", [*LOOPBACK, "pod.example", "10.1.2.3:9476", "node-1"])
    def test_any_name_is_allowed_on_all_addresses(
        self, endpoints: HTTPEndpoints, host: str
    ) -> None:
        """A server on all addresses can be called by any name, as Prometheus and probes do it."""
        with endpoints.start_server(0, "0.0.0.0") as server:
            assert status_with_host(server, host) == 200

    @pytest.mark.parametrize("addr", ["127.0.0.1", "0.0.0.0"])
    def test_list_is_allowed_besides_the_loopback(
        self, endpoints: HTTPEndpoints, addr: str
    ) -> None:
        """With a list, the names in it and those of the loopback are allowed, and no others."""
        hosts = ["Metrics.Example", "10.1.2.3", "::ffff:10.1.2.4"]
        with endpoints.start_server(0, addr, allowed_hosts=hosts) as server:
            for host in ("metrics.example:80", "10.1.2.3", "[::ffff:10.1.2.4]:80", "localhost:1"):
                assert status_with_host(server, host) == 200
            for host in ("evil.example", "x.metrics.example", "10.1.2.5"):
                assert status_with_host(server, host) == 421

    def test_star_allows_any_name(self, endpoints: HTTPEndpoints) -> None:
        """``*`` allows any name on the loopback, too, as behind a proxy that passes names on."""
        with endpoints.start_server(0, allowed_hosts=["*"]) as server:
            assert status_with_host(server, "app.example") == 200

    @pytest.mark.parametrize("hosts", ["metrics.example", b"metrics.example"])
    def test_text_instead_of_a_list_raises_an_error_that_shows_the_list(
        self, endpoints: HTTPEndpoints, hosts: Any
    ) -> None:
        """A text is not taken for a list of its characters."""
        with pytest.raises(errors.ArgumentTypeError, match=rf"pass a list, such as \[{hosts!r}\]"):
            endpoints.start_server(0, allowed_hosts=hosts)

    @pytest.mark.parametrize(
        ("hosts", "error"),
        [
            ([b"metrics.example"], errors.ArgumentTypeError),
            ([None], errors.ArgumentTypeError),
            ([""], errors.ArgumentValueError),
            (["metrics.example:9476"], errors.ArgumentValueError),
            (["http://metrics.example"], errors.ArgumentValueError),
            (["*.example"], errors.ArgumentValueError),
            (["a b"], errors.ArgumentValueError),
        ],
    )
    def test_impossible_list_raises_an_error_that_says_what_to_pass(
        self, endpoints: HTTPEndpoints, hosts: Any, error: type[Exception]
    ) -> None:
        """What is no host name raises an error."""
        with pytest.raises(error, match=r"allowed_hosts.*pass"):
            endpoints.start_server(0, allowed_hosts=hosts)


class TestAbsoluteForm:
    """Targets of requests that are whole URLs, as clients of proxies send them."""

    @pytest.mark.parametrize(
        "target",
        [
            "http://localhost/health",
            "HTTP://LOCALHOST:9476/health",
            "https://[::1]/health",
            "http://localhost/health?x=http://evil.example/",
            "http://localhost",
            "http://localhost?x",
        ],
    )
    def test_path_and_query_of_the_url_are_used(self, server: HTTPServer, target: str) -> None:
        """The response is that to the path and the query of the URL."""
        path = "/health" if "/health" in target else "/"
        reply = fetch(server, target)
        assert (reply.status, reply.body) == (200, fetch(server, path).body)

    def test_query_selects_metrics(self, server: HTTPServer) -> None:
        """The query is not taken for a part of the path."""
        reply = fetch(server, "http://localhost/metrics?name[]=jobs")
        assert "jobs 7.0" in reply.text
        assert "runs_total" not in reply.text

    @pytest.mark.parametrize(
        ("authority", "host", "status"),
        [
            ("localhost", "evil.example", 200),
            ("evil.example", "localhost", 421),
            ("evil.example:9476", "localhost", 421),
            ("localhost@evil.example", "localhost", 421),
            ("localhost:80@evil.example", "localhost", 421),
        ],
    )
    def test_host_of_the_url_counts_instead_of_the_header(
        self, server: HTTPServer, authority: str, host: str, status: int
    ) -> None:
        """The host in the URL is checked, and the header is ignored (RFC 9112, section 3.2.2)."""
        assert fetch(server, f"http://{authority}/livez", headers={"Host": host}).status == status

    def test_page_without_a_token_is_found_by_the_path_only(self, protected: HTTPServer) -> None:
        """A token is necessary unless the path of the URL is that of the public page."""
        assert fetch(protected, "http://localhost/livez").status == 200
        assert fetch(protected, "http://localhost/metrics").status == 401
        assert fetch(protected, "http://livez/metrics").status == 421


class TestLengthOfTheToken:
    def test_longest_token_can_be_sent(self, endpoints: HTTPEndpoints, tmp_path: Path) -> None:
        """A client can send a token of the greatest length, with other headers."""
        token = "x" * MAX_TOKEN_FILE_BYTES
        (tmp_path / "token").write_text(token)
        with endpoints.start_server(0, bearer_token_file=tmp_path / "token") as server:
            headers = {"Authorization": f"Bearer {token}", "X": "y" * 10_000}
            assert fetch(server, headers=headers).status == 200

    @pytest.mark.parametrize("size", [MAX_TOKEN_FILE_BYTES + 1, 70_000, 10_000_000])
    def test_token_that_no_client_can_send_raises_an_error(
        self, endpoints: HTTPEndpoints, tmp_path: Path, size: int
    ) -> None:
        """A longer token is an error at the start that says how long it may be."""
        (tmp_path / "token").write_text("x" * size)
        with pytest.raises(errors.ArgumentValueError, match=rf"at most {MAX_TOKEN_FILE_BYTES} "):
            endpoints.start_server(0, bearer_token_file=tmp_path / "token")

    def test_longer_token_leaves_the_old_one_valid(
        self, protected: HTTPServer, token_file: Path, failures: ReportedErrors
    ) -> None:
        """If the token is replaced by one that is too long, the old one stays valid."""
        token_file.write_text("x" * 70_000)
        assert status_with_token(protected, TOKEN) == 200
        assert [component for component, _ in failures] == ["http"]
