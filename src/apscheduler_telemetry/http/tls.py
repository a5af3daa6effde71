"""
TLS options of the built-in server.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from apscheduler_telemetry.errors import ArgumentValueError


@dataclass(frozen=True, kw_only=True)
class TLSOptions:
    """
    The TLS arguments of `prometheus_client.start_http_server`; without them, plain HTTP is served.

    Attributes:
        certfile: PEM certificate chain; given, the server speaks HTTPS (TLS 1.2 or newer).
        keyfile: PEM private key; by default it is read from `certfile`.
        client_cafile: PEM certificates of the authorities that sign client certificates.
        client_capath: a directory of such certificates.
        client_auth_required: whether to reject clients without such a certificate.
    """

    certfile: str | os.PathLike[str] | None = None
    keyfile: str | os.PathLike[str] | None = None
    client_cafile: str | os.PathLike[str] | None = None
    client_capath: str | os.PathLike[str] | None = None
    client_auth_required: bool = False

    def create_context(self) -> ssl.SSLContext | None:
        """
        Load the files.

        Returns:
            The context for a server; None for plain HTTP.

        Raises:
            ArgumentValueError: an option is given without another one that it needs.
            OSError: a file cannot be loaded; ``errno`` says why.
        """
        self._validate()
        if self.certfile is None:
            return None
        try:
            context = ssl.create_default_context(
                ssl.Purpose.CLIENT_AUTH, cafile=self.client_cafile, capath=self.client_capath
            )
            # The empty password makes an encrypted key an error, not a prompt on the terminal.
            context.load_cert_chain(self.certfile, self.keyfile, password="")
        except OSError as error:
            paths = (self.certfile, self.keyfile, self.client_cafile, self.client_capath)
            listed = ", ".join(str(path) for path in paths if path)
            reason = error.strerror or error
            msg = f"cannot load {listed}: {reason}; pass PEM files that this process may read"
            raise type(error)(error.errno, msg) from error
        if self.client_auth_required:
            context.verify_mode = ssl.CERT_REQUIRED
        return context

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
