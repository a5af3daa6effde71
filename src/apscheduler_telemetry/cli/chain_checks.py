"""
What ``doctor`` says about each link from an application to the receivers of its alerts.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from apscheduler_telemetry.cli.client import (
    Answer,
    QueryParameters,
    complete_url,
    fetch,
    parse_json,
)
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.core.findings import INFO, SERIOUS

OK = "ok"
CLOCK_TOLERANCE_SECONDS = 5.0
"""Seconds: more than an answer takes, and than the whole seconds of its header hide."""

MAX_LISTED_NAMES = 5
"""How many names one sentence lists."""

JSON_CONTENT_TYPE = "application/json"


SERVER_NAMES = {
    "application": "the application",
    "prometheus": "Prometheus",
    "alertmanager": "Alertmanager",
}
"""Of the kinds of servers, as sentences have them."""
_ADVICE_ON_PREFIXES = dict.fromkeys(
    ("prometheus", "alertmanager"), ", with its path if it has a --web.route-prefix"
)

_TIME_PATTERN = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d)")


class CheckResult(NamedTuple):
    """
    What was found about one link.

    Attributes:
        code: names the link.
        level: `OK`, `INFO` or `SERIOUS`.
        message: one or more sentences, without the last full stop.
        fix: what to do; empty if there is nothing to do.
    """

    code: str
    level: str
    message: str
    fix: str = ""


class ChainServer:
    """
    One of the servers of the chain.

    Attributes:
        kind: ``application``, ``prometheus`` or ``alertmanager``.
        name: what it is called in sentences.
        url: the address that the user has given.
        advice: what to pass instead if it is another server.
    """

    def __init__(self, kind: str, url: str, token: str | None, token_option: str) -> None:
        self.kind = kind
        self.name = SERVER_NAMES[kind]
        self.url = url
        self.advice = f"Pass the address of {self.name}{_ADVICE_ON_PREFIXES.get(kind, '')}"
        self._token = token
        self._token_option = token_option
        complete_url(url, token_option=token_option)  # so that it is valid

    def fetch(self, page: str | None, query: QueryParameters = (), **options: Any) -> Answer:
        """Return what a page of `complete_url` answers; for others see `client.fetch`."""
        url = complete_url(self.url, page, self._token_option)
        options.setdefault("content_type", JSON_CONTENT_TYPE)
        return fetch(
            url,
            self._token,
            query,
            advice=self.advice,
            token_option=self._token_option,
            **options,
        )

    def read_json(self, answer: Answer) -> Any:
        """
        Return the content of an answer.

        Raises:
            CommandError: it is not in JSON.
        """
        return parse_json(answer.text, self.url, self.advice)


def yield_checks_until_failure(
    code: str, server: ChainServer, checks: Iterable[CheckResult]
) -> Iterator[CheckResult]:
    """Yield checks; if the server fails to answer, or answers nonsense, the last one says so."""
    try:
        yield from checks
    except CommandError as error:
        text, _, fix = str(error).partition(". ")
        yield CheckResult(
            code, SERIOUS, text, fix or f"Start it, or pass another address of {server.name}."
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        message = f"{server.url} answers in an unknown form: {type(error).__name__}: {error}"
        yield CheckResult(code, SERIOUS, message, f"{server.advice}.")


def check_clock(answer: Answer, server: ChainServer) -> Iterator[CheckResult]:
    """Compare the clock of a server with the one of this machine, if the server says its time."""
    try:
        seconds = parsedate_to_datetime(answer.date).timestamp() - time.time()
    except (TypeError, ValueError):
        return
    if abs(seconds) <= CLOCK_TOLERANCE_SECONDS:
        yield CheckResult("clock", OK, "its clock agrees with the one of this machine")
        return
    direction = "ahead of" if seconds > 0 else "behind"
    yield CheckResult(
        "clock",
        INFO,
        f"The clock of {server.name} is {abs(seconds):.0f} s {direction} the one of this machine. "
        "The rules compare times of the application with the clock of Prometheus",
        "Synchronize the clocks of all machines, such as with chrony.",
    )


def abbreviate(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - MAX_LISTED_NAMES
    return ", ".join(names[:MAX_LISTED_NAMES]) + (f" and {more} more" if more > 0 else "")


def parse_time(text: str) -> datetime:
    """
    Return a time of an API, in whole seconds: Python 3.10 reads no nanoseconds, and no ``Z``.

    Raises:
        ValueError: it is none.
    """
    match = _TIME_PATTERN.fullmatch(text)
    if match is None:
        msg = f"unknown time: {text}"
        raise ValueError(msg)
    return datetime.fromisoformat(match[1] + match[2].replace("Z", "+00:00"))
