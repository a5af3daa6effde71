"""
Reads the pages of a running process.
"""

from __future__ import annotations

import argparse
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from apscheduler_telemetry.cli.errors import CommandError

ANSWER_SECONDS = 10.0
"""How long to wait for a connection, or for the next bytes: what Prometheus allows for a scrape."""
TOTAL_SECONDS = 30.0
"""How long reading may take as a whole."""
MAX_BYTES = 50_000_000
"""More than all metrics of 5,000 jobs, or than its latest 20,000 runs."""

_PAGES = frozenset({"health", "livez", "metrics", "runs"})

_TELEMETRY_ADVICE = "Pass the address of the application's telemetry"

Query = Sequence[tuple[str, str]]


def add_address_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which process is read."""
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:9476")
    add_token_argument(parser, "the process")


def add_token_argument(parser: argparse.ArgumentParser, server: str) -> None:
    """Add the option for the token that a server requires."""
    parser.add_argument(
        "--bearer-token-file",
        metavar="FILE",
        type=Path,
        help=f"a file with the token that {server} requires",
    )


def complete_url(text: str, page: str = "metrics") -> str:
    """
    Return the address of a page of a process.

    Args:
        text: the address that the user has given: that of the server, or of any of its pages.
        page: the name of the page, such as ``runs``. The metrics may have any path.

    Raises:
        CommandError: it is no address.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        valid = False
    if not valid or not text.isascii() or not text.isprintable() or " " in text:
        msg = f"{text!r} is no address. Pass one such as http://127.0.0.1:9476/metrics."
        raise CommandError(msg)
    if parts.username is not None:
        msg = "the address must not contain a user. Pass a token with --bearer-token-file."
        raise CommandError(msg)
    path = parts.path.rstrip("/")
    if page != "metrics" or not path:
        directory, _, last = path.rpartition("/")
        path = f"{directory if last in _PAGES else path}/{page}"
    else:
        path = parts.path
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def fetch_json(
    url: str,
    token: str | None,
    query: Query = (),
    *,
    advice: str = _TELEMETRY_ADVICE,
    statuses: Sequence[int] = (),
) -> Any:
    """
    Return what a page answers in JSON; the arguments are those of `fetch_text`.

    Raises:
        CommandError: there is no answer, or it is not in JSON.
    """
    text = fetch_text(
        url, token, query, content_type="application/json", advice=advice, statuses=statuses
    )
    try:
        return json.loads(text)
    except ValueError as error:
        msg = f"{url} does not answer in JSON. {advice}."
        raise CommandError(msg) from error


def fetch_text(  # noqa: PLR0913  # each by name
    url: str,
    token: str | None,
    query: Query = (),
    *,
    content_type: str,
    advice: str = _TELEMETRY_ADVICE,
    statuses: Sequence[int] = (),
) -> str:
    """
    Return the text at an address.

    Args:
        url: of `complete_url`.
        token: what the process requires; None for nothing.
        query: parameters that are added to those of the address.
        content_type: what the answer should be.
        advice: what to pass instead if it is another server.
        statuses: of HTTP that are allowed, besides 200.

    Raises:
        CommandError: there is no answer, it is too long or takes too long, or is not UTF-8.
    """
    encoded = urllib.parse.urlencode(query)
    request = urllib.request.Request(  # noqa: S310  # http or https: see complete_url
        f"{url}{'&' if '?' in url else '?'}{encoded}" if encoded else url,
        headers={"Accept": content_type},
    )
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(_NoRedirects)
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as response:
            return _read(response, url, deadline)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in statuses:
                return _read(error, url, deadline)
            raise CommandError(_describe_status(url, error, advice)) from error
    except urllib.error.URLError as error:
        msg = f"cannot connect to {url}: {error.reason}"
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


def _read(response: Any, url: str, deadline: float) -> str:
    content = bytearray()
    while chunk := response.read1(65_536):
        content += chunk
        if len(content) > MAX_BYTES:
            msg = f"{url} sends more than {MAX_BYTES // 1_000_000} MB, and is not read"
            raise CommandError(msg)
        if time.monotonic() > deadline:
            msg = f"{url} takes longer than {TOTAL_SECONDS:.0f} seconds, and is not read"
            raise CommandError(msg)
    return content.decode()


def _describe_status(url: str, error: urllib.error.HTTPError, advice: str) -> str:
    answer = f"{url} answers with status {error.code}"
    if error.code in {401, 403}:
        return f"{answer}. Pass its token with --bearer-token-file."
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
