"""
Clients that read responses, and the limit on the memory that slow ones take.
"""

from __future__ import annotations

import errno
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable

from apscheduler_telemetry.core.forks import reset_in_forked_children
from apscheduler_telemetry.http.limits import report_exceeded_limit
from apscheduler_telemetry.http.messages import Response


class SlowReaderError(ConnectionResetError):
    """
    Ends the response to a client that reads too slowly.

    A `ConnectionResetError` with its ``errno``, which WSGI servers take for a client that has
    disconnected, and do not log as an error.
    """

    def __init__(self, max_bytes: int) -> None:
        msg = (
            f"more than {max_bytes} bytes were waiting for clients that read slowly, and the "
            "slowest client was disconnected; start_http_server(max_buffered_bytes=...) changes "
            "the limit"
        )
        super().__init__(errno.ECONNRESET, msg)


class ResponseReader:
    """
    One client that gets a response: an iterator over the body, as WSGI expects it.

    It releases the response at the end of the body, when ``close`` is called, as WSGI servers do
    it, and when it is garbage.

    Args:
        response: the response.
        budget: closed readers are removed from it.
        disconnect: disconnects the client; None if that is impossible.
        max_piece_bytes: bytes that are returned at a time, if chunks of the response are larger.

    Attributes:
        status: the status code of the response.
        headers: its headers.
        response: the response; None once the reader is closed or dropped.
        last_piece_at: when the client last took a part, in seconds of `time.monotonic`.
    """

    def __init__(
        self,
        response: Response,
        budget: BufferBudget,
        disconnect: Callable[[], None] | None,
        max_piece_bytes: int | None,
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self.response: Response | None = response
        self.last_piece_at = time.monotonic()
        self._buffer_budget = budget
        self._disconnect = disconnect
        self._max_piece_bytes = max_piece_bytes
        self._chunk_index = self._offset_in_chunk = 0
        self._is_dropped = False
        response.readers.add(self)

    def __iter__(self) -> ResponseReader:
        """Return this reader."""
        return self

    def __next__(self) -> bytes:
        """
        Return the next part of the body.

        Raises:
            SlowReaderError: the client was too slow.
        """
        response = self.response  # read once, as another thread may drop this reader
        if self._is_dropped:
            raise SlowReaderError(self._buffer_budget.max_bytes)
        if response is None or self._chunk_index == len(response.chunks):
            self.close()
            raise StopIteration
        self.last_piece_at = time.monotonic()
        chunk = response.chunks[self._chunk_index]
        end = (
            len(chunk)
            if self._max_piece_bytes is None
            else self._offset_in_chunk + self._max_piece_bytes
        )
        piece = chunk[self._offset_in_chunk : end]  # the chunk itself if it is whole
        self._offset_in_chunk = end
        if end >= len(chunk):
            self._chunk_index, self._offset_in_chunk = self._chunk_index + 1, 0
            if self._chunk_index == len(response.chunks):
                response.end_reading(self)
        return piece

    def close(self) -> None:
        """Release the response."""
        self._buffer_budget.remove(self)
        self._release_response()

    def drop_and_disconnect(self) -> None:
        """Release the response before the client has read it, and disconnect the client."""
        self._is_dropped = True
        self._release_response()
        if self._disconnect is not None:
            self._disconnect()

    def _release_response(self) -> None:
        response, self.response = self.response, None
        if response is not None:
            response.end_reading(self)


class BufferBudget:
    """
    Limits the bytes of the responses that clients are reading.

    If a new response exceeds the limit, the readers of those responses are dropped that no client
    has made progress with for the longest time. The new response itself is always allowed.

    Args:
        max_bytes: the limit; a response that several clients read counts once.
        report_exception: called with ``"http"`` for each client that is dropped.
    """

    def __init__(self, max_bytes: int, report_exception: Callable[[str], None]) -> None:
        self.max_bytes = max_bytes
        self._report_exception = report_exception
        self.reset_after_fork()
        reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Forget the clients of the parent process."""
        self._lock = threading.RLock()
        self._readers: weakref.WeakSet[ResponseReader] = weakref.WeakSet()

    def open_reader(
        self,
        response: Response,
        *,
        disconnect: Callable[[], None] | None = None,
        max_piece_bytes: int | None = None,
    ) -> ResponseReader:
        """Return a new reader of a response; see `ResponseReader`."""
        reader = ResponseReader(response, self, disconnect, max_piece_bytes)
        with self._lock:
            self._readers.add(reader)
            dropped = self._remove_slowest_readers(response)
        for slow_reader in dropped:
            slow_reader.drop_and_disconnect()
            report_exceeded_limit(self._report_exception, SlowReaderError(self.max_bytes))
        return reader

    def remove(self, reader: ResponseReader) -> None:
        """Stop counting a reader."""
        with self._lock:
            self._readers.discard(reader)

    def _remove_slowest_readers(self, new_response: Response) -> list[ResponseReader]:
        """Remove and return the readers to drop so that `new_response` fits."""
        readers_by_response: dict[Response, list[ResponseReader]] = defaultdict(list)
        for reader in self._readers:
            if reader.response is not None:
                readers_by_response[reader.response].append(reader)
        held_bytes = sum(response.size for response in readers_by_response)
        dropped = []
        for response in sorted(
            readers_by_response,
            key=lambda response: max(r.last_piece_at for r in readers_by_response[response]),
        ):
            if held_bytes <= self.max_bytes:
                break
            if response is not new_response:
                held_bytes -= response.size
                dropped += readers_by_response[response]
        self._readers.difference_update(dropped)
        return dropped
