"""The example of nginx in front of a door, on free ports of loopback with a certificate of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.launched import REPOSITORY, free_port
from tests.serving.door.served import PATIENCE, Client

EXAMPLE = REPOSITORY / "deploy" / "nginx" / "metastable.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
needs_nginx = pytest.mark.skipif(
    NGINX is None or shutil.which("openssl") is None,
    reason="nginx or openssl is not installed: apt-get install nginx openssl",
)
MAIN = """
daemon off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log warn;
{user}
events {{ worker_connections 512; }}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/metastable.conf;
}}
"""


class Tls(Client):
    """A connection over TLS."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, source: str = "127.0.0.1") -> None:
        super().__init__(address, source)
        self.file.close()
        self.socket = context.wrap_socket(self.socket, server_hostname="127.0.0.1")
        self.file = self.socket.makefile("rb")


@dataclass
class Proxied:
    folder: Path
    plain: int
    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def certificate(self) -> Path:
        return self.folder / "cert.pem"

    @property
    def log(self) -> str:
        return (self.folder / "access.log").read_text()

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.certificate))

    def client(self, source: str = "127.0.0.1") -> Tls:
        return Tls(("127.0.0.1", self.port), self.context(), source)

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, verify=self.context(), trust_env=False, timeout=PATIENCE)


def written(folder: Path, door: int, plain: int, port: int) -> None:
    """The example in `folder`, with these ports and paths and nothing else changed."""
    text = EXAMPLE.read_text()
    changes = {
        "server 127.0.0.1:8080 ": f"server 127.0.0.1:{door} ",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/metastable/tls/fullchain.pem": f"{folder}/cert.pem",
        "/etc/metastable/tls/key.pem": f"{folder}/key.pem",
        "/var/log/nginx/metastable.log": f"{folder}/access.log",
    }
    for old, new in changes.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "metastable.conf").write_text(text)
    user = "user root;" if os.getuid() == 0 else ""
    (folder / "nginx.conf").write_text(MAIN.format(folder=folder, user=user))
    subject = ["-subj", "/CN=metastable.example.org", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"), "-days", "2"]
    kind = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(["openssl", "req", *kind, *made, *subject], check=True, capture_output=True)


def listens(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def proxied(folder: Path, door: int) -> Iterator[Proxied]:
    """nginx before the door that listens on this port of loopback."""
    assert NGINX is not None
    found = Proxied(folder, free_port(), free_port())
    written(folder, door, found.plain, found.port)
    command = [NGINX, "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf")]
    tried = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr
    process = subprocess.Popen(command)
    try:
        until = time.monotonic() + PATIENCE
        while not listens(found.port):
            assert process.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        yield found
    finally:
        process.terminate()
        process.wait(PATIENCE)
