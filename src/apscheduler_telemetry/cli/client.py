"""
Reads the pages of a running process, and the APIs of Prometheus and Alertmanager.
"""

from __future__ import annotations

import argparse
import base64
import json
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from apscheduler_telemetry.cli.errors import AnswerStatusError, CommandError, UsageError

ANSWER_TIMEOUT_SECONDS = 10.0
"""How long to wait for a connection, or for the next bytes: what Prometheus allows for a scrape."""
TOTAL_TIMEOUT_SECONDS = 30.0
"""How long reading may take as a whole."""
MAX_ANSWER_BYTES = 50_000_000
"""More than all metrics of 5,000 jobs, or than its latest 20,000 runs."""

_PAGE_NAMES = frozenset({"health", "livez", "metrics", "runs"})

_TELEMETRY_URL_ADVICE = "Pass the address of the application's telemetry"

TOKEN_OPTION = "--bearer-token-file"  # noqa: S105  # the name of an option

QueryParameters = Sequence[tuple[str, str]]


class Answer(NamedTuple):
    """
    What a page answers.

    Attributes:
        text: the body.
        content_type: the header of this name; empty without one.
        date: the header of this name, which has the time of the server; empty without one.
    """

    text: str
    content_type: str
    date: str


def add_process_parser(  # noqa: PLR0913  # each by name
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run_command: Callable[[argparse.Namespace], None],
    *,
    summary: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """
    Add the parser of a command that shows a running process as a table or as JSON.

    Args:
        commands: where to add it.
        name: of the command.
        run_command: what the command does.
        summary: its line in the list of all commands.
        description: what its help says first.
        epilog: what its help says last.

    Returns:
        The parser, for further options.
    """
    parser = commands.add_parser(name, help=summary, description=description, epilog=epilog)
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:9476")
    add_token_argument(parser, "the process")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    parser.set_defaults(run_command=run_command)
    return parser


def add_token_argument(
    parser: argparse._ActionsContainer, server: str, option: str = TOKEN_OPTION
) -> None:
    """Add the option for the token that a server requires."""
    parser.add_argument(
        option, metavar="FILE", type=Path, help=f"a file with the token that {server} requires"
    )


def complete_url(text: str, page: str | None = None, token_option: str = TOKEN_OPTION) -> str:
    """
    Return the address of a page of a process.

    Args:
        text: the address that the user has given: that of the server, or of any of its pages.
        page: the name of the page, such as ``runs``; None for the metrics at whatever path the
            address has, or at ``/metrics`` if it has none.
        token_option: the option for the token of the process.

    Raises:
        UsageError: it is no address.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        valid = False
    if not valid or not text.isascii() or not text.isprintable() or " " in text:
        msg = f"{text!r} is no address. Pass one such as http://127.0.0.1:9476."
        raise UsageError(msg)
    if parts.username is not None:
        msg = f"the address must not contain a user. Pass a token with {token_option}."
        raise UsageError(msg)
    path = parts.path.rstrip("/")
    if page is None:
        path = parts.path if path else "/metrics"
    else:
        directory, _, last = path.rpartition("/")
        path = f"{directory if last in _PAGE_NAMES else path}/{page}"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def fetch_json(
    url: str,
    token: str | None,
    query: QueryParameters = (),
    *,
    advice: str = _TELEMETRY_URL_ADVICE,
    **options: Any,
) -> Any:
    """
    Return what a page answers in JSON; the arguments are those of `fetch`.

    Raises:
        CommandError: there is no answer, or it is not in JSON.
    """
    answer = fetch(url, token, query, content_type="application/json", advice=advice, **options)
    return parse_json(answer.text, url, advice)


def parse_json(text: str, url: str, advice: str) -> Any:
    """
    Return the content of an answer.

    Raises:
        CommandError: it is not in JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_constant=_reject_json_constant)
    except (ValueError, RecursionError) as error:
        msg = f"{url} does not answer in JSON. {advice}."
        raise CommandError(msg) from error


def _reject_json_constant(name: str) -> None:
    msg = f"{name} is no number of JSON"
    raise ValueError(msg)


def fetch(  # noqa: PLR0913  # each by name
    url: str,
    token: str | None,
    query: QueryParameters = (),
    *,
    content_type: str,
    advice: str = _TELEMETRY_URL_ADVICE,
    statuses: Sequence[int] = (),
    token_option: str = TOKEN_OPTION,
    json_to_post: Any = None,
) -> Answer:
    """
    Return what a page answers.

    Args:
        url: of `complete_url`.
        token: what the process requires: a token, or ``user:password`` if the server asks for basic
            authentication; None for nothing.
        query: parameters that are added to those of the address.
        content_type: what the answer should be.
        advice: what to pass instead if it is another server.
        statuses: of HTTP that are allowed, besides 200.
        token_option: the option for the token.
        json_to_post: what to post as JSON; None to get the page.

    Raises:
        AnswerStatusError: the answer has another status.
        CommandError: there is no answer, it is too long or takes too long, or is not UTF-8.
    """
    encoded = urllib.parse.urlencode(query)
    request = urllib.request.Request(  # noqa: S310  # http or https: see complete_url
        f"{url}{'&' if '?' in url else '?'}{encoded}" if encoded else url,
        data=None if json_to_post is None else json.dumps(json_to_post).encode(),
        headers={"Accept": content_type},
    )
    if json_to_post is not None:
        request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(_NoRedirects, _BasicAuthentication(token or ""))
    deadline = time.monotonic() + TOTAL_TIMEOUT_SECONDS
    try:
        with opener.open(request, timeout=ANSWER_TIMEOUT_SECONDS) as response:
            return _read_answer(response, url, deadline)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in statuses:
                return _read_answer(error, url, deadline)
            msg = _describe_status(url, error, advice, token_option)
            raise AnswerStatusError(msg, error.code) from error
    except urllib.error.URLError as error:
        msg = f"cannot connect to {url}: {error.reason}"
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            msg += ". If its authority is your own, set SSL_CERT_FILE to the certificate of it."
        elif isinstance(error.reason, ssl.SSLError):
            msg += ". Pass the address with http:// if the server has no certificate."
        raise CommandError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{url} does not answer in UTF-8. {advice}."
        raise CommandError(msg) from error
    except (OSError, HTTPException) as error:
        msg = f"{url} does not answer in HTTP: {str(error) or type(error).__name__}"
        raise CommandError(msg) from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes redirects errors: the token is for no other address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class _BasicAuthentication(urllib.request.BaseHandler):
    """
    Repeats a request if the server asks for a user and a password, as Prometheus itself does.

    Args:
        token: has the form ``user:password``; others are not sent in this way.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    def http_error_401(self, request: Any, _: Any, __: int, ___: str, headers: Any) -> Any:
        """Return the answer to the second request; None if there is none."""
        credentials = f"Basic {base64.b64encode(self._token.encode()).decode()}"
        if (
            ":" not in self._token
            or not _asks_for_basic_authentication(headers)
            or request.get_header("Authorization") == credentials
        ):
            return None
        request.add_unredirected_header("Authorization", credentials)
        return self.parent.open(request, timeout=request.timeout)


def _asks_for_basic_authentication(headers: Any) -> bool:
    return str(headers.get("WWW-Authenticate", "")).lower().startswith("basic")


def _read_answer(response: Any, url: str, deadline: float) -> Answer:
    content = bytearray()
    while chunk := response.read1(65_536):
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            msg = f"{url} sends more than {MAX_ANSWER_BYTES // 1_000_000} MB, and is not read"
            raise CommandError(msg)
        if time.monotonic() > deadline:
            msg = f"{url} takes longer than {TOTAL_TIMEOUT_SECONDS:.0f} seconds, and is not read"
            raise CommandError(msg)
    headers = response.headers
    return Answer(content.decode(), headers.get("Content-Type", ""), headers.get("Date", ""))


def _describe_status(
    url: str, error: urllib.error.HTTPError, advice: str, token_option: str
) -> str:
    answer = f"{url} answers with status {error.code}"
    if error.code == HTTPStatus.MISDIRECTED_REQUEST:
        return (
            f"{answer}, as the host in this address is not allowed. Pass the name to "
            "start_http_server(allowed_hosts=[...]), or pass another address here."
        )
    if error.code == HTTPStatus.UNAUTHORIZED and _asks_for_basic_authentication(error.headers):
        return f"{answer}. Pass a file that contains user:password with {token_option}."
    if error.code in {401, 403}:
        return f"{answer}. Pass its token with {token_option}."
    if 300 <= error.code < 400:  # noqa: PLR2004  # redirects
        location = error.headers.get("Location", "")
        return f"{answer}, to {location!r}. Pass that address if you trust it."
    return f"{answer}. {advice}."


def read_token(path: Path | None) -> str | None:
    """
    Return the token in a file; None without a file.

    Raises:
        CommandError: it cannot be read, or has no token.
    """
    from apscheduler_telemetry.errors import ArgumentValueError  # noqa: PLC0415
    from apscheduler_telemetry.http.access import read_token  # noqa: PLC0415  # loads dependencies

    if path is None:
        return None
    try:
        return read_token(path).decode("ascii")
    except ArgumentValueError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise CommandError(msg) from error
