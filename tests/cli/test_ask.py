"""`ask` without a Metastable server: tests/test_live.py has it with one."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import unquote

import httpx
import pytest

from metastable.cli import ask, client
from metastable.console import Parser, run
from metastable.errors import MetastableError
from tests.launched import free_port

CAT = Path("samples/cat.png")


class Stranger(BaseHTTPRequestHandler):
    """Some other server: what it answers is in the path."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status, _, text = unquote(self.path).strip("/").partition("/")
        self.send_response(int(status))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def asked(*words: str | Path) -> int:
    parser = Parser(prog="ask")
    ask.fill(parser)
    return run(parser, [str(word) for word in words])


def test_this_process_answers_where_nobody_listens(
    root: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setattr(client, "HERE", here)
    words = [
        root / CAT,
        root / "samples/dog.png",
        "--bundle",
        tiny_folder,
        "--setting",
        "fast",
        "--top-k",
        "2",
    ]
    assert asked(*words) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert f"because no server listens at {here}" in printed.err
    assert found["answered_by"] == "this process"
    assert [len(one["top"]) for one in found["verdicts"]] == [2, 2]
    assert {one["setting"] for one in found["verdicts"]} == {"fast"}
    assert printed.out.splitlines()[0].startswith(f"{root / CAT}: ")


def test_a_server_that_was_named_must_be_there(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(root / CAT, "--url", f"http://127.0.0.1:{free_port()}") == 2
    assert "no server answers at http://127.0.0.1:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--setting", "magic"], "there is no setting 'magic': choose from none, fast"),
        (["--deadline-ms", "5"], "--deadline-ms is for a server"),
        (["--top-k", "0"], "--top-k must be 1 or more"),
    ],
)
def test_what_cannot_be_asked_is_explained(
    words: list[str], said: str, root: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(root / CAT, "--in-process", "--bundle", tiny_folder, *words) == 2
    assert said in capsys.readouterr().err


def test_a_file_that_is_no_image_is_named(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.png").write_text("no image")
    assert asked(tmp_path / "text.png", "--in-process", "--bundle", tiny_folder) == 2
    assert f"{tmp_path / 'text.png'}: The image format is not supported" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/200/hello", "is no Metastable server"),
        ("/200/[]", "is no Metastable server"),
        ("/404/nothing", "answered 404: nothing"),
        ('/422/{"error":{"message":"no"}}', "answered 422: no"),
        ("/500/", "answered 500: nothing"),
    ],
)
def test_another_server_is_no_verdict(stranger: str, path: str, said: str) -> None:
    with httpx.Client(trust_env=False) as http, pytest.raises(MetastableError, match=said):
        client.ask(http, stranger + path, b"x", {})


def test_a_server_that_hangs_up_is_an_error_too() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        with (
            httpx.Client(trust_env=False, timeout=0.2) as http,
            pytest.raises(MetastableError, match="no answer"),
        ):
            client.ask(http, url, b"x", {})
    with httpx.Client(trust_env=False) as http, pytest.raises(MetastableError, match="no answer"):
        client.ask(http, "nonsense", b"x", {})


def test_a_key_is_read_from_the_servers_file(tmp_path: Path) -> None:
    (tmp_path / "good").write_text('{"inference": {"key": "abc"}}')
    (tmp_path / "bad").write_text("[]")
    assert client.key_in(tmp_path / "good") == "abc"
    with pytest.raises(MetastableError, match="bad is no key file"):
        client.key_in(tmp_path / "bad")
