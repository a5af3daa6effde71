"""The built-in server with TLS and client certificates."""

from __future__ import annotations

import errno
import random
import shutil
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry import errors
from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from tests.helpers.collectors import ReportedErrors
from tests.helpers.faults import failing_open
from tests.helpers.http_clients import (
    GET_METRICS,
    RESPONSE_TIMEOUT,
    address,
    fetch,
    read_all,
    send_raw,
)
from tests.helpers.servers import free_port


class TestTls:
    @pytest.mark.parametrize(
        "files",
        [
            {"certfile": "both.pem"},
            {"certfile": "cert.pem", "keyfile": "key.pem"},
        ],
    )
    def test_server_speaks_https(
        self,
        endpoints: HTTPEndpoints,
        certificates: Path,
        trusting_context: ssl.SSLContext,
        files: dict[str, str],
    ) -> None:
        """With a certificate the server speaks HTTPS, with the key in the same file or not."""
        paths: dict[str, Any] = {name: certificates / file for name, file in files.items()}
        with endpoints.start_server(0, **paths) as server:
            assert server.url == f"https://127.0.0.1:{server.port}"
            assert "runs_total" in fetch(server, context=trusting_context).text

    def test_client_without_a_required_certificate_is_not_served(
        self,
        endpoints: HTTPEndpoints,
        certificate_authority: Any,
        certificates: Path,
        trusting_context: ssl.SSLContext,
    ) -> None:
        """If client certificates are required, only clients that have one are served."""
        with endpoints.start_server(
            0,
            certfile=certificates / "both.pem",
            client_cafile=certificates / "ca.pem",
            client_auth_required=True,
        ) as server:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                fetch(server, context=trusting_context)
            certificate_authority.issue_cert("client.example").configure_cert(trusting_context)
            assert fetch(server, context=trusting_context).status == 200

    def test_incomplete_handshakes_block_no_other_client(
        self,
        endpoints: HTTPEndpoints,
        certificates: Path,
        trusting_context: ssl.SSLContext,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        """Clients that do not complete the handshake block no other, and nothing is printed."""
        server = endpoints.start_server(0, certfile=certificates / "both.pem", idle_timeout=1.0)
        with socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as silent:
            for sent_bytes in (
                GET_METRICS,
                b"",
                b"\x16\x03\x01\x00\xc8\x01",
                random.Random(7).randbytes(1000),
            ):
                assert b"200" not in send_raw(address(server), sent_bytes)[:12]
            assert fetch(server, context=trusting_context).status == 200
            assert read_all(silent) == b""

        with socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT):
            assert fetch(server, context=trusting_context).status == 200
            server.close()
        endpoints.start_server(server.port).close()
        assert capfd.readouterr().err == ""

    @pytest.mark.parametrize(
        ("files", "error"),
        [
            ({"certfile": "missing.pem"}, FileNotFoundError),
            (
                {"certfile": "cert.pem", "keyfile": "missing.pem"},
                FileNotFoundError,
            ),
            ({"certfile": "cert.pem"}, ssl.SSLError),
            ({"certfile": "invalid.pem"}, ssl.SSLError),
            ({"certfile": "."}, OSError),
        ],
    )
    def test_missing_or_invalid_file_raises_an_error_that_names_it(
        self,
        endpoints: HTTPEndpoints,
        certificates: Path,
        files: dict[str, str],
        error: type[OSError],
    ) -> None:
        """A missing or invalid file raises an error that names it, and nothing listens."""
        port = free_port()
        options: dict[str, Any] = {name: certificates / file for name, file in files.items()}
        with pytest.raises(error, match=f"{[*files.values()][-1]}: .*pass PEM files"):
            endpoints.start_server(port, **options)
        with pytest.raises(ConnectionRefusedError):
            send_raw(("127.0.0.1", port))

    @pytest.mark.parametrize(
        "options",
        [
            {"keyfile": "key.pem"},
            {"client_cafile": "ca.pem", "client_auth_required": True},
            {"certfile": "both.pem", "client_auth_required": True},
            {"certfile": "both.pem", "client_cafile": "ca.pem"},
        ],
    )
    def test_options_that_protect_less_than_they_seem_raise_an_error(
        self, endpoints: HTTPEndpoints, options: dict[str, Any]
    ) -> None:
        """Options that would protect less than they seem to raise an error."""
        with pytest.raises(errors.ArgumentValueError, match="pass"):
            endpoints.start_server(0, **options)

    def test_encrypted_key_raises_an_error(
        self, endpoints: HTTPEndpoints, certificates: Path
    ) -> None:
        """An encrypted key raises an error instead of prompting for a password."""
        serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
        key = serialization.load_pem_private_key((certificates / "key.pem").read_bytes(), None)
        (certificates / "locked.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        with pytest.raises(ssl.SSLError, match=r"locked\.pem"):
            endpoints.start_server(
                0,
                certfile=certificates / "cert.pem",
                keyfile=certificates / "locked.pem",
            )


class TestReplacedFiles:
    """Files that are replaced while the server runs, as certbot and Kubernetes do it."""

    @pytest.fixture
    def files(self, certificates: Path, tmp_path: Path) -> dict[str, Path]:
        for name in ("cert.pem", "key.pem"):
            shutil.copy(certificates / name, tmp_path)
        return {"certfile": tmp_path / "cert.pem", "keyfile": tmp_path / "key.pem"}

    @staticmethod
    def serial_number(server: HTTPServer, context: ssl.SSLContext) -> Any:
        """Return the serial number of the certificate of a server, which is trusted."""
        with (
            socket.create_connection(address(server), timeout=RESPONSE_TIMEOUT) as connection,
            context.wrap_socket(connection, server_hostname="127.0.0.1") as wrapped,
        ):
            return (wrapped.getpeercert() or {})["serialNumber"]

    def test_new_certificate_is_used_for_new_connections(
        self,
        endpoints: HTTPEndpoints,
        certificate_authority: Any,
        files: dict[str, Path],
        trusting_context: ssl.SSLContext,
        failures: ReportedErrors,
    ) -> None:
        """A new certificate is used at once; while only one file is new, the old one is used."""
        with endpoints.start_server(0, **files) as server:  # type: ignore[arg-type]
            old = self.serial_number(server, trusting_context)
            issued = certificate_authority.issue_cert("127.0.0.1")
            issued.cert_chain_pems[0].write_to_path(files["certfile"])
            for _ in range(3):
                assert self.serial_number(server, trusting_context) == old
            assert [component for component, _ in failures] == ["http"]
            issued.private_key_pem.write_to_path(files["keyfile"])
            new = self.serial_number(server, trusting_context)

            assert new != old
            assert fetch(server, context=trusting_context).status == 200
            assert len(failures) == 1

    @pytest.mark.parametrize("name", ["certfile", "keyfile"])
    def test_missing_file_leaves_the_old_certificate(
        self,
        endpoints: HTTPEndpoints,
        files: dict[str, Path],
        trusting_context: ssl.SSLContext,
        failures: ReportedErrors,
        name: str,
    ) -> None:
        """A file that is missing for a while leaves the old certificate in use."""
        with endpoints.start_server(0, **files) as server:  # type: ignore[arg-type]
            content = files[name].read_bytes()
            files[name].unlink()
            assert fetch(server, context=trusting_context).status == 200
            files[name].write_bytes(content)
            assert fetch(server, context=trusting_context).status == 200
            assert len(failures) == 1

    @pytest.mark.parametrize("name", ["certfile", "keyfile"])
    def test_file_that_cannot_be_opened_for_a_while_is_tried_again(  # noqa: PLR0917  # fixtures
        self,
        endpoints: HTTPEndpoints,
        certificate_authority: Any,
        files: dict[str, Path],
        trusting_context: ssl.SSLContext,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
        name: str,
    ) -> None:
        """A new certificate is used once descriptors are free; until then one error is counted."""
        monkeypatch.setattr(limits, "FILE_RETRY_SECONDS", 0.0)
        issued = certificate_authority.issue_cert("127.0.0.1")
        with endpoints.start_server(0, **files) as server:  # type: ignore[arg-type]
            old = self.serial_number(server, trusting_context)
            with failing_open(files[name], errno.EMFILE):
                issued.cert_chain_pems[0].write_to_path(files["certfile"])
                issued.private_key_pem.write_to_path(files["keyfile"])
                for _ in range(3):
                    assert self.serial_number(server, trusting_context) == old
            assert self.serial_number(server, trusting_context) != old
        assert [component for component, _ in failures] == ["http"]

    def test_new_authority_of_clients_is_used(
        self,
        endpoints: HTTPEndpoints,
        certificates: Path,
        tmp_path: Path,
        trusting_context: ssl.SSLContext,
    ) -> None:
        """Certificates of clients are checked against the new authority."""
        trustme = pytest.importorskip("trustme")
        new_authority = trustme.CA()
        new_authority.issue_cert("client.example").configure_cert(trusting_context)
        authorities = tmp_path / "ca.pem"
        shutil.copy(certificates / "ca.pem", authorities)
        with endpoints.start_server(
            0,
            certfile=certificates / "both.pem",
            client_cafile=authorities,
            client_auth_required=True,
        ) as server:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                fetch(server, context=trusting_context)
            new_authority.cert_pem.write_to_path(authorities)
            assert fetch(server, context=trusting_context).status == 200

    def test_authority_that_is_removed_from_its_directory_is_not_trusted_any_more(
        self,
        endpoints: HTTPEndpoints,
        certificate_authority: Any,
        certificates: Path,
        tmp_path: Path,
        trusting_context: ssl.SSLContext,
    ) -> None:
        """A directory of authorities is used, and read again when it changes."""
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("no openssl here, which names files in such a directory")
        command: list[str | Path] = [
            openssl,
            "x509",
            "-hash",
            "-noout",
            "-in",
            certificates / "ca.pem",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        authority = tmp_path / f"{done.stdout.strip()}.0"
        shutil.copy(certificates / "ca.pem", authority)
        certificate_authority.issue_cert("client.example").configure_cert(trusting_context)
        with endpoints.start_server(
            0,
            certfile=certificates / "both.pem",
            client_capath=tmp_path,
            client_auth_required=True,
        ) as server:
            assert fetch(server, context=trusting_context).status == 200
            authority.unlink()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                fetch(server, context=trusting_context)
