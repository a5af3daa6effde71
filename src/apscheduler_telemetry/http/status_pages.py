"""
The status page, for people: ``/``. Its templates need Jinja2, an optional dependency.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.util
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from importlib import resources
from typing import Any, Protocol
from urllib.parse import parse_qs, quote

from apscheduler_telemetry.core.model import MAX_NAME_LENGTH
from apscheduler_telemetry.core.pauses import let_other_threads_run
from apscheduler_telemetry.http.messages import INTERNAL_ERROR_RESPONSE, Request, Response
from apscheduler_telemetry.http.negotiation import accepts_gzip, join_and_gzip
from apscheduler_telemetry.http.pages import Page, split_large_chunks

PIECES_BETWEEN_PAUSES = 500
"""Pieces of a page that are made before other threads run: about a millisecond."""
MISSING_LIBRARY_HINT = (
    "For a status page of all jobs, install Jinja2, and restart this process: "
    "pip install 'apscheduler-telemetry[status]'"
)


class StatusSource(Protocol):
    """Returns what the pages show, by the names that their templates use."""

    def now(self) -> float:
        """Return Unix seconds."""

    def describe_overview(self) -> Mapping[str, Any]:
        """Return all jobs."""

    def describe_job(self, scheduler_name: str | None, job_id: str) -> Mapping[str, Any] | None:
        """Return one job, of the first scheduler that has it unless one is named; or None."""

    def describe_upcoming_runs(self) -> Mapping[str, Any]:
        """Return what is due in the next 24 hours."""


def has_template_library() -> bool:
    """Return whether Jinja2 is installed, without loading it."""
    return importlib.util.find_spec("jinja2") is not None


def create_status_pages(source: StatusSource, link_names: list[str]) -> dict[str, Page]:
    """
    Return the pages by name.

    Args:
        source: what they show.
        link_names: other pages, to which they link.
    """
    pages = [kind(source, link_names) for kind in (OverviewPage, JobPage, UpcomingPage)]
    return {page.name: page for page in pages}


@dataclass(frozen=True, kw_only=True)
class StatusVariant:
    """
    What is requested of a page.

    Attributes:
        relative_root: what links to other pages begin with; see `Request`.
        query: the query string.
        is_gzipped: whether to compress the body.
    """

    relative_root: str
    query: str
    is_gzipped: bool


class StatusPage:
    """
    A page for people, as HTML that loads nothing and runs no script but its own.

    Args:
        source: what it shows.
        link_names: other pages, to which it links.
    """

    name: str
    template_name: str

    def __init__(self, source: StatusSource, link_names: list[str]) -> None:
        self._status_source = source
        self._link_names = link_names

    def choose_variant(self, request: Request) -> StatusVariant:
        """Return where the application is mounted, and what is asked for."""
        return StatusVariant(
            relative_root=request.relative_root,
            query=request.query,
            is_gzipped=accepts_gzip(request.accept_encoding),
        )

    def render_error(self) -> Response:
        """Return a plain 500."""
        return INTERNAL_ERROR_RESPONSE

    def respond(
        self,
        variant: StatusVariant,
        content: Mapping[str, Any],
        status: HTTPStatus = HTTPStatus.OK,
        template_name: str | None = None,
    ) -> Response:
        """Return the filled template as a response."""
        assets = _load_assets()
        template = _get_template_environment().get_template(template_name or self.template_name)
        pieces = template.generate(
            **content,
            page_name=self.name,
            root=variant.relative_root,
            link_names=self._link_names,
            style=assets.style,
            script=assets.script,
        )
        blocks = []
        # Joined one by one: the pieces of a large page are enough objects for the garbage collector
        # to look at all objects of the process, in which time no other thread runs.
        while block := "".join(itertools.islice(pieces, PIECES_BETWEEN_PAUSES)):
            blocks.append(block)
            let_other_threads_run()
        headers = [*_SECURITY_HEADERS, ("Content-Security-Policy", assets.content_security_policy)]
        body = "".join(blocks).encode("utf-8", "replace")
        if variant.is_gzipped:
            body = join_and_gzip([body])
            headers.append(("Content-Encoding", "gzip"))
        chunks = list(split_large_chunks([body]))
        return Response(status, chunks, "text/html; charset=utf-8", tuple(headers))


class OverviewPage(StatusPage):
    """``/``: all jobs, those in trouble first."""

    name = ""
    template_name = "overview.html"

    def render(self, variant: StatusVariant) -> Response:
        """Return the page."""
        return self.respond(variant, self._status_source.describe_overview())


class JobPage(StatusPage):
    """``/job?job_id=...``: one job; ``scheduler`` selects one of several schedulers."""

    name = "job"
    template_name = "job.html"

    def render(self, variant: StatusVariant) -> Response:
        """Return the page, or what is wrong with the parameters."""
        parameters = parse_qs(variant.query, keep_blank_values=True)
        if "job_id" not in parameters:
            message = "The parameter job_id is missing."
            return self._error_response(variant, HTTPStatus.BAD_REQUEST, message)
        job_id = parameters["job_id"][-1]
        scheduler = parameters["scheduler"][-1] if "scheduler" in parameters else None
        content = self._status_source.describe_job(scheduler, job_id)
        if content is None:
            message = f"There is no job {job_id[:MAX_NAME_LENGTH]} any more."
            return self._error_response(variant, HTTPStatus.NOT_FOUND, message)
        return self.respond(variant, content)

    def _error_response(self, variant: StatusVariant, status: HTTPStatus, message: str) -> Response:
        content = {"message": message, "now": self._status_source.now()}
        return self.respond(variant, content, status, "message.html")


class UpcomingPage(StatusPage):
    """``/upcoming``: what is due in the next 24 hours."""

    name = "upcoming"
    template_name = "upcoming.html"

    def render(self, variant: StatusVariant) -> Response:
        """Return the page."""
        return self.respond(variant, self._status_source.describe_upcoming_runs())


_SECURITY_HEADERS = (("Referrer-Policy", "no-referrer"), ("Vary", "Accept-Encoding"))


@dataclass(frozen=True)
class _Assets:
    """The style and the script of all pages, and the policy that allows only these."""

    style: str
    script: str
    content_security_policy: str


@functools.cache
def _load_assets() -> _Assets:
    directory = resources.files("apscheduler_telemetry.http") / "templates"
    style, script = (
        (directory / name).read_text("utf-8").strip() for name in ("status.css", "status.js")
    )
    content_security_policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_csp_hash_source(style)}",
            f"script-src {_csp_hash_source(script)}",
            "connect-src 'self'",  # the script reads the page again
            "img-src data:",  # the empty icon, without which browsers ask for /favicon.ico
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return _Assets(style, script, content_security_policy)


def _csp_hash_source(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@functools.cache
def _get_template_environment() -> Any:
    import jinja2  # noqa: PLC0415  # optional, and loaded for the first request only

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("apscheduler_telemetry.http"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["quoted"] = functools.partial(quote, safe="", errors="replace")
    return environment
