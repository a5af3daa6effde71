"""
Time limits and size limits of the HTTP endpoints.

Other modules read them as ``limits.NAME`` at the time of use, so that tests can change them.
"""

from __future__ import annotations

RENDER_TIMEOUT = 60.0
"""
Seconds to produce a response; a scrape that takes longer fails.

Prometheus itself gives up after 10 s unless configured otherwise.
"""

IDLE_TIMEOUT = 30.0
"""Seconds that the built-in server waits for a client that neither sends nor reads."""

MAX_CONNECTION_AGE = 2 * IDLE_TIMEOUT + RENDER_TIMEOUT
"""
Seconds after which the built-in server closes any connection.

`IDLE_TIMEOUT` alone does not stop a client that sends or reads one byte now and then.
"""

MAX_CONNECTIONS = 256
"""Open connections of the built-in server; beyond it, the oldest is closed for a new client."""

MAX_THREADS_PER_PAGE = 8
"""Threads per page. Collecting is CPU-bound, so more of them would not make it faster."""

MAX_PENDING_REQUESTS = 1000
"""Requests per page that may wait for a thread; so many wait only if collecting hangs."""
