"""libpq's options of encryption in the URL hold, against something that speaks TLS.

The embedded Postgres is built without it, so that a socket of Python's stands in its place: it
agrees to encrypt, shows a certificate it signed itself, and keeps what it is told after that.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from pgdefect.core.errors import DatabaseUnavailable
from pgdefect.db.connection.engine import Database

pytestmark = pytest.mark.server

SECRET = "hunter2-xyzzy"
SSL_REQUEST = struct.pack(">ii", 8, 80877103)


class TlsServer:
    """Answers each connection's request for encryption; startup: what came encrypted."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "certificate.pem"
        key = folder / "key.pem"
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
                *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
                *("-keyout", str(key), "-out", str(self.certificate)),
            ],
            check=True,
            capture_output=True,
        )
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.startup: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            try:
                with client:
                    client.settimeout(10)
                    if client.recv(8) != SSL_REQUEST:
                        continue
                    client.sendall(b"S")
                    with self._context.wrap_socket(client, server_side=True) as encrypted:
                        if told := encrypted.recv(4096):
                            self.startup.append(told)
            except OSError:  # the client does not like the certificate
                continue

    def close(self) -> None:
        self._listening.close()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    assert shutil.which("openssl"), "openssl makes the certificate"
    server = TlsServer(tmp_path_factory.mktemp("tls"))
    yield server
    server.close()


def refusal(tls: TlsServer, host: str, options: str) -> str:
    database = Database(f"postgresql://someone:{SECRET}@{host}:{tls.port}/name?{options}")
    with pytest.raises(DatabaseUnavailable) as caught, database.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "options", ["sslmode=require", "sslmode=verify-full&sslrootcert={certificate}"]
)
def test_a_server_that_is_trusted_is_spoken_to_encrypted(tls: TlsServer, options: str) -> None:
    tls.startup.clear()
    told = refusal(tls, "localhost", options.format(certificate=tls.certificate))
    assert "certificate" not in told.replace(str(tls.certificate), "")
    [startup] = tls.startup  # and there it ends: this is no Postgres
    assert b"user\0someone\0" in startup


@pytest.mark.parametrize(
    ("host", "options", "why"),
    [
        ("localhost", "sslmode=verify-full&sslrootcert=system", "certificate verify failed"),
        ("localhost", "sslmode=verify-ca&sslrootcert=/nowhere.pem", "root certificate file"),
        ("127.0.0.1", "sslmode=verify-full&sslrootcert={certificate}", "does not match host name"),
        ("localhost", "sslmode=require&ssl_min_protocol_version=nonsense", "nonsense"),
    ],
)
def test_a_server_that_is_not_is_told_nothing(
    tls: TlsServer, host: str, options: str, why: str
) -> None:
    tls.startup.clear()
    assert why in refusal(tls, host, options.format(certificate=tls.certificate))
    assert tls.startup == []
