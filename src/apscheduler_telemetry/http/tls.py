"""
TLS options of the built-in server.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apscheduler_telemetry.core import files
from apscheduler_telemetry.errors import ArgumentValueError
from apscheduler_telemetry.http.watched_files import FileReloader

MAX_FILE_BYTES = 1024 * 1024
"""More than any file of certificates has; a bundle of all public authorities has 250 kB."""

logger = logging.getLogger("apscheduler_telemetry")

_HASHED_FILE_NAME_PATTERN = re.compile(r"[0-9a-f]{8}\.[0-9]+")
_MISSING_OR_FORBIDDEN_ERRNOS = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.EPERM}
)


@dataclass(frozen=True, kw_only=True)
class TLSOptions:
    """
    The TLS arguments of `prometheus_client.start_http_server`; without them, plain HTTP is served.

    Attributes:
        certfile: PEM certificate chain; given, the server speaks HTTPS (TLS 1.2 or newer).
        keyfile: PEM private key; by default it is read from `certfile`.
        client_cafile: PEM certificates of the authorities that sign client certificates.
        client_capath: a directory of such certificates, named as by ``openssl rehash``. Unlike
            OpenSSL, the server does not check that the hash in a name is that of the certificate.
        client_auth_required: whether to reject clients without such a certificate.
    """

    certfile: str | os.PathLike[str] | None = None
    keyfile: str | os.PathLike[str] | None = None
    client_cafile: str | os.PathLike[str] | None = None
    client_capath: str | os.PathLike[str] | None = None
    client_auth_required: bool = False

    @property
    def paths(self) -> tuple[str | os.PathLike[str], ...]:
        """The files and the directory that are given."""
        paths = (self.certfile, self.keyfile, self.client_cafile, self.client_capath)
        return tuple(path for path in paths if path)

    @property
    def watched_paths(self) -> tuple[str | os.PathLike[str], ...]:
        """
        The same, and the files in the directory.

        The directory itself does not change if a file in it is written to, or if it is a link and
        the file behind it is replaced.
        """
        try:
            return (*self.paths, *self._find_client_ca_files())
        except (OSError, ValueError):  # `create_context` says why
            return self.paths

    def create_context(
        self, report_unusable: Callable[[Path, OSError], None]
    ) -> ssl.SSLContext | None:
        """
        Load the files.

        Args:
            report_unusable: called for each file in `client_capath` that cannot be used and is left
                out, as OpenSSL does it with such a directory.

        Returns:
            The context for a server; None for plain HTTP.

        Raises:
            ArgumentValueError: an option is given without another one that it needs.
            OSError: another file cannot be loaded; ``errno`` says why.
        """
        self._validate()
        if self.certfile is None:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            if self.client_cafile:
                _load_ca_certificates(context, Path(self.client_cafile))
            for path in self._find_client_ca_files():
                _load_ca_certificates_if_usable(context, path, report_unusable)
            with (
                files.pinned_path(Path(self.certfile), MAX_FILE_BYTES) as certificate,
                files.pinned_path(Path(self.keyfile or self.certfile), MAX_FILE_BYTES) as key,
            ):
                # The empty password makes an encrypted key an error, not a prompt on the terminal.
                context.load_cert_chain(certificate, key, password="")
        except OSError as error:
            subject = error.filename or ", ".join(str(path) for path in self.paths)
            reason = error.strerror or error
            msg = f"cannot load {subject}: {reason}; pass PEM files that this process may read"
            raise type(error)(error.errno, msg) from error
        if self.client_auth_required:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _find_client_ca_files(self) -> list[Path]:
        """
        Return the files that OpenSSL would look for, by the hash of an authority's name.

        OpenSSL itself would open them during a handshake, whatever they are then.
        """
        if not self.client_capath:
            return []
        directory = Path(self.client_capath)
        names = os.listdir(directory)  # noqa: PTH208  # faster, for each connection
        return [
            directory / name for name in sorted(filter(_HASHED_FILE_NAME_PATTERN.fullmatch, names))
        ]

    def _validate(self) -> None:
        """Reject options that would protect less than they seem to."""
        if self.client_auth_required != bool(self.client_cafile or self.client_capath):
            msg = (
                "client_auth_required=True requires certificates of clients, and client_cafile "
                "(or client_capath) contains the trusted authorities; one without the other "
                "protects nothing: pass both"
            )
            raise ArgumentValueError(msg)
        if self.certfile is None and (self.keyfile or self.client_auth_required):
            msg = "without certfile the server would speak plain HTTP; pass certfile as well"
            raise ArgumentValueError(msg)


def _load_ca_certificates(context: ssl.SSLContext, path: Path) -> None:
    with files.pinned_path(path, MAX_FILE_BYTES) as name:
        context.load_verify_locations(name)


def _load_ca_certificates_if_usable(
    context: ssl.SSLContext, path: Path, report_unusable: Callable[[Path, OSError], None]
) -> None:
    try:
        _load_ca_certificates(context, path)
    except OSError as error:
        if not _is_fault_of_file(error):
            raise
        report_unusable(path, error)


def _is_fault_of_file(error: OSError) -> bool:
    """Return whether a file cannot be loaded until it changes; unlike for want of descriptors."""
    return (
        isinstance(error, (files.UnusableFileError, ssl.SSLError))
        or error.errno in _MISSING_OR_FORBIDDEN_ERRNOS
    )


class ReloadingTLSContext:
    """
    The TLS context of a server, which is created anew when one of its files changes.

    If the new files cannot be loaded, as while only one of two is replaced, the previous context
    stays in use, and they are tried again; see `FileReloader`. A file in the directory of
    authorities is only left out. It is logged at the start, and counts as a failure later.

    Args:
        options: the files.
        report_exception: called with ``"http"`` while the error of such a failure is being handled.

    Raises:
        ArgumentValueError, OSError: see `TLSOptions.create_context`.
    """

    def __init__(self, options: TLSOptions, report_exception: Callable[[str], None]) -> None:
        self._options = options
        self._report_exception = report_exception
        self._reloader = FileReloader(
            lambda: options.watched_paths, self._reload_context, report_exception
        )
        unusable: dict[Path, OSError] = {}
        self._context = options.create_context(unusable.__setitem__)
        self._reported_unusable_files = {*unusable}
        for path, error in unusable.items():
            logger.warning(
                "client_capath: %r is left out: %s; remove it, or replace it by a PEM file that "
                "this process may read",
                str(path),
                error.strerror or error,
            )

    @property
    def is_enabled(self) -> bool:
        """Whether the server speaks TLS."""
        return self._context is not None

    def get_current_context(self) -> ssl.SSLContext | None:
        """Return the context for a new connection; None for plain HTTP."""
        if self._context is None:
            return None
        self._reloader.reload_if_necessary()
        return self._context

    def _reload_context(self) -> None:
        unusable: dict[Path, OSError] = {}
        self._context = self._options.create_context(unusable.__setitem__)
        for path, error in unusable.items():
            if path not in self._reported_unusable_files:
                self._report_unusable_file(path, error)
        self._reported_unusable_files = {*unusable}

    def _report_unusable_file(self, path: Path, cause: OSError) -> None:
        try:
            msg = f"{path} is left out of client_capath: {cause.strerror or cause}"
            raise OSError(cause.errno, msg) from cause  # noqa: TRY301  # reported while it is handled
        except OSError:
            self._report_exception("http")
