"""Certificates, keys and authorities that are no regular files, or become none."""

from __future__ import annotations

import errno
import os
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer, limits
from tests.helpers.collectors import ReportedErrors
from tests.helpers.faults import failing_open
from tests.helpers.http_clients import fetch

KINDS = ("FIFO", "link to a FIFO", "directory", "endless device", "huge file")


def replace_by(kind: str, path: Path) -> None:
    """Put something else in the place of a file."""
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "link to a FIFO":
        path.symlink_to(path.with_suffix(".fifo"))
        os.mkfifo(path.with_suffix(".fifo"))
    elif kind == "directory":
        path.mkdir()
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 10**12)  # without blocks on the disk


def put_unusable(problem: str, path: Path) -> None:
    """Put something at a path where nothing is, from which no authority can be loaded."""
    if problem == "dangling link":
        path.symlink_to("gone.pem")
        return
    path.touch()
    if problem == "no certificate":
        path.write_text("-----BEGIN CERTIFICATE-----\n")
    elif problem != "empty file":
        replace_by(problem, path)


@pytest.fixture
def client_context(certificate_authority: Any, trusting_context: ssl.SSLContext) -> ssl.SSLContext:
    """Create the TLS context of a client that has a certificate."""
    certificate_authority.issue_cert("client.example").configure_cert(trusting_context)
    return trusting_context


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO here")
class TestForeignFiles:
    """Something else than a regular file in the place of a certificate, a key or an authority."""

    OPTIONS = ("certfile", "keyfile", "client_cafile")

    @pytest.fixture
    def options(self, certificates: Path, tmp_path: Path) -> dict[str, Any]:
        for name in ("cert.pem", "key.pem", "ca.pem"):
            shutil.copy(certificates / name, tmp_path)
        paths = (tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "ca.pem")
        return {**dict(zip(self.OPTIONS, paths, strict=True)), "client_auth_required": True}

    @pytest.mark.parametrize("option", OPTIONS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_old_file_stays_in_use_until_the_new_one_is_regular(  # noqa: PLR0917  # fixtures
        self,
        endpoints: HTTPEndpoints,
        options: dict[str, Any],
        client_context: ssl.SSLContext,
        failures: ReportedErrors,
        option: str,
        kind: str,
    ) -> None:
        """It is not opened, and counts as one error; a regular file is used again."""
        path = options[option]
        with endpoints.start_server(0, **options) as server:
            content = path.read_bytes()
            replace_by(kind, path)
            for _ in range(3):
                assert fetch(server, "/livez", context=client_context).status == 200
            [(component, error)] = failures
            assert component == "http"
            assert str(path) in str(error)

            new = path.with_suffix(".new")
            new.write_bytes(content)
            if path.is_dir():
                path.rmdir()
            new.replace(path)
            assert fetch(server, "/livez", context=client_context).status == 200
            assert len(failures) == 1

    @pytest.mark.parametrize("option", OPTIONS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_server_does_not_start_with_it(
        self, endpoints: HTTPEndpoints, options: dict[str, Any], option: str, kind: str
    ) -> None:
        """At the start it is an error that names the file and says what to pass."""
        path = options[option]
        replace_by(kind, path)
        with pytest.raises(OSError, match=rf"{path}: .* is not (opened|read); pass PEM files"):
            endpoints.start_server(0, **options)

    @pytest.mark.parametrize("option", OPTIONS)
    def test_file_that_is_exchanged_after_the_check_is_not_opened(
        self,
        endpoints: HTTPEndpoints,
        options: dict[str, Any],
        client_context: ssl.SSLContext,
        monkeypatch: pytest.MonkeyPatch,
        option: str,
    ) -> None:
        """The file that was checked is the one that is loaded, also if another one replaces it."""
        if not Path("/dev/fd").exists():
            pytest.skip("no names for open files here")
        path, fstat = options[option], os.fstat

        def exchange(descriptor: int) -> os.stat_result:
            status = fstat(descriptor)
            if path.is_file() and os.path.samestat(status, path.stat()):
                path.unlink()
                os.mkfifo(path)
            return status

        monkeypatch.setattr(os, "fstat", exchange)
        with endpoints.start_server(0, **options) as server:
            assert path.is_fifo()
            assert fetch(server, "/livez", context=client_context).status == 200


def serve_with_authorities(
    endpoints: HTTPEndpoints, certificates: Path, directory: Path
) -> HTTPServer:
    """Start a server for clients with a certificate of an authority in the directory."""
    return endpoints.start_server(
        0, certfile=certificates / "both.pem", client_capath=directory, client_auth_required=True
    )


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO here")
class TestDirectoryOfAuthorities:
    """Something else than a regular file in the directory `client_capath`."""

    @pytest.fixture
    def authority(self, certificates: Path, tmp_path: Path) -> Path:
        """Return the file of the authority in a directory, with the name that OpenSSL expects."""
        openssl = shutil.which("openssl")
        if openssl is None:
            pytest.skip("no openssl here, which names files in such a directory")
        command = [openssl, "x509", "-hash", "-noout", "-in", str(certificates / "ca.pem")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return Path(shutil.copy(certificates / "ca.pem", tmp_path / f"{done.stdout.strip()}.0"))

    @pytest.mark.parametrize("kind", KINDS)
    def test_authority_is_left_out_until_it_is_regular_again(  # noqa: PLR0917  # fixtures
        self,
        endpoints: HTTPEndpoints,
        authority: Path,
        client_context: ssl.SSLContext,
        certificates: Path,
        failures: ReportedErrors,
        kind: str,
    ) -> None:
        """It is not opened, neither when it is noticed nor in a handshake."""
        certfile, content = certificates / "both.pem", authority.read_bytes()
        with endpoints.start_server(
            0, certfile=certfile, client_capath=authority.parent, client_auth_required=True
        ) as server:
            replace_by(kind, authority)
            for _ in range(2):
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    fetch(server, "/livez", context=client_context)
            [(component, error)] = failures
            assert component == "http"
            assert str(authority) in str(error)
            if authority.is_dir():
                authority.rmdir()
            authority.with_suffix(".new").write_bytes(content)
            authority.with_suffix(".new").replace(authority)
            assert fetch(server, "/livez", context=client_context).status == 200
            assert len(failures) == 1

    def test_only_hashed_names_are_opened(
        self,
        endpoints: HTTPEndpoints,
        authority: Path,
        client_context: ssl.SSLContext,
        certificates: Path,
    ) -> None:
        """Files with other names, for which OpenSSL does not look, are ignored."""
        os.mkfifo(authority.with_name("README"))
        (authority.parent / "broken.pem").write_text("broken")
        with serve_with_authorities(endpoints, certificates, authority.parent) as server:
            assert fetch(server, "/livez", context=client_context).status == 200

    @pytest.mark.parametrize("change", ["replaced behind a link", "written to"])
    def test_authority_whose_directory_does_not_change_is_read_again(
        self,
        endpoints: HTTPEndpoints,
        authority: Path,
        client_context: ssl.SSLContext,
        certificates: Path,
        change: str,
    ) -> None:
        """A new authority counts, whether its file is in the directory or a link points to it."""
        other = pytest.importorskip("trustme").CA().cert_pem.bytes()
        file, directory = authority, authority.parent
        if change == "replaced behind a link":
            directory = directory / "links"
            directory.mkdir()
            (directory / authority.name).symlink_to(authority)
        with serve_with_authorities(endpoints, certificates, directory) as server:
            assert fetch(server, "/livez", context=client_context).status == 200
            if change == "written to":
                file.write_bytes(other)
            else:
                (file.parent / "new").write_bytes(other)
                (file.parent / "new").replace(file)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                fetch(server, "/livez", context=client_context)

    @pytest.mark.parametrize("problem", [*KINDS, "dangling link", "empty file", "no certificate"])
    def test_server_starts_without_an_unusable_file(  # noqa: PLR0917  # fixtures
        self,
        endpoints: HTTPEndpoints,
        authority: Path,
        client_context: ssl.SSLContext,
        certificates: Path,
        failures: ReportedErrors,
        caplog: pytest.LogCaptureFixture,
        problem: str,
    ) -> None:
        """It is named in one warning; the other authorities are loaded, now and later."""
        unusable = authority.with_name("deadbeef.0")
        put_unusable(problem, unusable)
        with serve_with_authorities(endpoints, certificates, authority.parent) as server:
            assert fetch(server, "/livez", context=client_context).status == 200
            [message] = [record.getMessage() for record in caplog.records]
            assert repr(str(unusable)) in message

            content = authority.read_bytes()
            authority.unlink()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                fetch(server, "/livez", context=client_context)
            authority.write_bytes(content)
            assert fetch(server, "/livez", context=client_context).status == 200
        assert not failures

    @pytest.mark.parametrize("problem", ["dangling link", "empty file", "no certificate"])
    def test_unusable_file_that_is_added_counts_once(  # noqa: PLR0917  # fixtures
        self,
        endpoints: HTTPEndpoints,
        authority: Path,
        client_context: ssl.SSLContext,
        certificates: Path,
        failures: ReportedErrors,
        problem: str,
    ) -> None:
        """The error names it, and is not reported again when the directory changes."""
        with serve_with_authorities(endpoints, certificates, authority.parent) as server:
            put_unusable(problem, authority.with_name("deadbeef.0"))
            assert fetch(server, "/livez", context=client_context).status == 200
            authority.with_name("other").touch()
            assert fetch(server, "/livez", context=client_context).status == 200
        [(component, error)] = failures
        assert component == "http"
        assert str(authority.with_name("deadbeef.0")) in str(error)

    def test_no_authority_is_left_out_if_no_descriptor_is_left(  # noqa: PLR0917  # fixtures
        self,
        endpoints: HTTPEndpoints,
        authority: Path,
        client_context: ssl.SSLContext,
        certificates: Path,
        failures: ReportedErrors,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """The old authority stays in use, and the new one is loaded when descriptors are free."""
        monkeypatch.setattr(limits, "FILE_RETRY_SECONDS", 0.0)
        other = pytest.importorskip("trustme").CA().cert_pem.bytes()
        with serve_with_authorities(endpoints, certificates, authority.parent) as server:
            authority.write_bytes(other)
            with failing_open(authority, errno.EMFILE):
                for _ in range(3):
                    assert fetch(server, "/livez", context=client_context).status == 200
            with pytest.raises((ssl.SSLError, ConnectionError)):
                fetch(server, "/livez", context=client_context)
        assert len(failures) == 1
