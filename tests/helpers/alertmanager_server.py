"""
A real Alertmanager for tests, and the HTTP and SMTP servers that receive its notifications.

All of them listen on the loopback. Tests wait for a notification with a deadline.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Generic, TypeVar

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session

from tests.helpers.servers import free_port, get, running_process
from tests.helpers.waiting import wait_for_answer

WAIT_TIMEOUT = 60.0
"""Seconds after which a message will not come: hundreds of times what it takes, as machines may be
busy, and well below the timeout of a test, which says less."""

T = TypeVar("T")
Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """Keeps what arrives, in order."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._items: list[Item] = []

    @property
    def items(self) -> list[Item]:
        """What has arrived so far."""
        with self._arrived:
            return list(self._items)

    def put(self, item: Item) -> None:
        """Keep an item, and wake up threads that wait for it."""
        with self._arrived:
            self._items.append(item)
            self._arrived.notify_all()

    def wait_for(
        self, wanted: Callable[[Item], bool], count: int = 1, timeout: float = WAIT_TIMEOUT
    ) -> list[Item]:
        """
        Wait until there are enough items of a kind.

        Args:
            wanted: returns whether an item is of that kind.
            count: how many are enough.
            timeout: seconds.

        Returns:
            All of that kind so far.

        Raises:
            AssertionError: there were fewer in time; the message shows the latest arrivals.
        """
        deadline = time.monotonic() + timeout
        with self._arrived:
            while len(found := [item for item in self._items if wanted(item)]) < count:
                if not self._arrived.wait(deadline - time.monotonic()):
                    msg = f"{len(found)} of {count} in {timeout:g} s; last: {self._items[-5:]}"
                    raise AssertionError(msg)
            return found


@dataclass(frozen=True, kw_only=True)
class Post:
    """
    A request with a JSON body.

    Attributes:
        path: its path, by which receivers that share a server are distinguished.
        json: its body.
    """

    path: str
    json: Any

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """Alerts of a webhook's body."""
        alerts: list[dict[str, Any]] = self.json["alerts"]
        return alerts

    def has(self, **labels: str) -> bool:
        """Whether an alert in a webhook's body has these labels."""
        return any(labels.items() <= alert["labels"].items() for alert in self.alerts)


class Receiver(Inbox[Post]):
    """
    An HTTP server that keeps JSON posts; a context manager.

    It responds as Slack does: later Alertmanagers require Slack's ``ok``, other receivers any 200.
    """

    # Not pytest-httpserver: it would save ten lines here, but takes half a second to stop, prints a
    # line for each request to stderr, and waits only for requests with a handler of their own.

    def __init__(self) -> None:
        super().__init__()
        self._server = _HttpServer(("127.0.0.1", 0), _HttpHandler)
        self._server.receiver = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    def __enter__(self) -> Receiver:  # noqa: PYI034  # typing.Self is of Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it listens, without a path."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def at(self, path: str) -> list[Post]:
        """Return what has been posted to a path so far."""
        return [post for post in self.items if post.path == path]


class _HttpServer(ThreadingHTTPServer):
    receiver: Receiver


class _HttpHandler(BaseHTTPRequestHandler):
    server: _HttpServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.receiver.put(Post(path=self.path, json=json.loads(body)))
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Keep the test's output to the test."""


@dataclass(frozen=True, kw_only=True)
class Mail:
    """
    An e-mail.

    Attributes:
        login: user and password that it was sent with.
        to: the address of the recipient.
        message: the e-mail itself.
    """

    login: tuple[str, str] | None
    to: str
    message: EmailMessage

    def body(self, kind: str) -> str:
        """Return its ``plain`` or ``html`` text."""
        part = self.message.get_body((kind,))
        assert part is not None, f"no {kind} part"
        return str(part.get_content())


class Mailbox(Inbox[Mail]):
    """An SMTP server that keeps e-mails; a context manager. It accepts any login, and none."""

    def __init__(self) -> None:
        super().__init__()
        self._controller = Controller(
            self,
            "127.0.0.1",
            free_port(),  # it does not find out which port it got for port 0
            authenticator=lambda *arguments: AuthResult(success=True, auth_data=arguments[-1]),
            auth_require_tls=False,
            auth_exclude_mechanism=["LOGIN"],  # Alertmanager knows other prompts than aiosmtpd's
            server_hostname="localhost",  # or it asks the DNS for the name of this machine
            ready_timeout=WAIT_TIMEOUT,
        )

    def __enter__(self) -> Mailbox:  # noqa: PYI034  # typing.Self is of Python 3.11
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()

    @property
    def address(self) -> str:
        """Where it listens, as host:port."""
        return f"127.0.0.1:{self._controller.port}"

    async def handle_DATA(  # noqa: N802  # aiosmtpd's name for what handles an e-mail
        self, _: SMTP, session: Session, envelope: Envelope
    ) -> str:
        """Keep an e-mail."""
        login: Any = session.auth_data
        assert isinstance(envelope.content, bytes)
        self.put(
            Mail(
                login=(login.login.decode(), login.password.decode()) if login else None,
                to=envelope.rcpt_tos[-1],
                message=message_from_bytes(envelope.content, policy=policy.default),
            )
        )
        return "250 OK"


class Alertmanager:
    """
    A real Alertmanager.

    Attributes:
        url: where it listens.
        log: its output.
    """

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log

    def post(self, *alerts: Mapping[str, Any]) -> None:
        """Post alerts, as Prometheus does."""
        request = urllib.request.Request(
            f"{self.url}/api/v2/alerts",
            data=json.dumps(alerts).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 200

    def alerts(self, **labels: str) -> list[dict[str, Any]]:
        """Return the alerts that fire and have these labels, those that are silenced as well."""
        status, body = get(f"{self.url}/api/v2/alerts")
        assert status == 200, body
        return [alert for alert in json.loads(body) if labels.items() <= alert["labels"].items()]

    def suppressed(self, **labels: str) -> list[str]:
        """
        Return what inhibits the only alert that has these labels: fingerprints, empty if nothing.

        Raises:
            LookupError: there is not exactly one such alert.
        """
        found = self.alerts(**labels)
        if len(found) != 1:
            msg = f"{len(found)} alerts, not 1: {labels}"
            raise LookupError(msg)
        inhibitors: list[str] = found[0]["status"]["inhibitedBy"]
        assert bool(inhibitors) == (found[0]["status"]["state"] == "suppressed")
        return inhibitors


@contextlib.contextmanager
def alertmanager(
    binary: str, directory: Path, config: Mapping[str, Any], *options: str
) -> Iterator[Alertmanager]:
    """
    Run an Alertmanager.

    Args:
        binary: the program.
        directory: where its files go; relative paths in `config` start there.
        config: the content of its configuration file.
        options: more command-line options.
    """
    directory.mkdir(exist_ok=True)
    (directory / "alertmanager.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command: Sequence[str | Path] = [
        binary,
        f"--config.file={directory / 'alertmanager.yml'}",
        f"--storage.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",  # alone, so that it waits for no peers
        *options,
    ]
    log = directory / "alertmanager.log"
    with running_process(command, log) as process:
        server = Alertmanager(f"http://127.0.0.1:{port}", log)

        def ready() -> bool:
            if process.poll() is not None:
                msg = f"Alertmanager ended: {log.read_text()}"
                raise RuntimeError(msg)
            return get(f"{server.url}/-/ready")[0] == 200

        wait_for_answer(ready)
        yield server
