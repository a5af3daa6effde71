"""
Serve ``/metrics`` and ``/health``: as a WSGI app, as an ASGI app, or from a built-in server.

From the bottom up:

- `limits`: time limits and size limits
- `messages`, `negotiation`, `thread_pool`: requests and responses, headers, threads
- `pages`, `app`: the pages, and the routing to them
- `wsgi`, `asgi`: the same for either kind of server
- `connections`, `tls`, `wsgi_server`, `server`: the built-in server
- `endpoints`: all of it for one registry
"""

from __future__ import annotations

from apscheduler_telemetry.http.endpoints import HTTPEndpoints
from apscheduler_telemetry.http.server import HTTPServer, UnavailableHTTPServer

__all__ = ["HTTPEndpoints", "HTTPServer", "UnavailableHTTPServer"]
