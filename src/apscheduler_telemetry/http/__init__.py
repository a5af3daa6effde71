"""
Serve ``/metrics``, ``/health`` and ``/livez``: by WSGI, by ASGI, or from a built-in server.

From the bottom up:

- `limits`: time limits and size limits
- `messages`, `negotiation`: requests and responses, headers
- `render_queue`, `readers`: work and memory that many clients share
- `pages`, `app`: the pages, and the routing to them
- `wsgi`, `asgi`: the same for either kind of server
- `connections`, `watched_files`, `tls`, `access`, `wsgi_server`, `server`: the built-in server
- `endpoints`: all of it for one registry
"""

from __future__ import annotations

from apscheduler_telemetry.http.endpoints import HTTPEndpoints, reject_unknown_server_options
from apscheduler_telemetry.http.server import (
    HTTPServer,
    UnavailableHTTPServer,
    has_address_in_common,
)

__all__ = [
    "HTTPEndpoints",
    "HTTPServer",
    "UnavailableHTTPServer",
    "has_address_in_common",
    "reject_unknown_server_options",
]
