"""`ask` without a Metastable server: tests/test_live.py has it with one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from metastable.cli import ask
from metastable.console import Parser, run
from metastable.errors import MetastableError
from tests.client.servers import Act, Request, refusing, reply, serving, verdict
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
    monkeypatch.setattr(ask, "HERE", here)
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
def test_another_server_is_no_verdict(
    stranger: str, path: str, said: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked(root / CAT, "--url", stranger + path) == 2
    assert said in capsys.readouterr().err


def test_a_server_that_hangs_up_is_an_error_too(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Act(then="close")) as served:
        assert asked(root / CAT, "--url", served.url) == 2
    assert f"no answer from {served.url}: " in capsys.readouterr().err
    assert asked(root / CAT, "--url", "nonsense") == 2
    assert "'nonsense' is no http address" in capsys.readouterr().err


def door(request: Request) -> Act:
    """A server that classifies what begins with a 1 and nothing else."""
    if request.method == "GET":
        return Act(reply("404 Not Found"))
    if not request.body.startswith(b"1"):
        return refusing("415 Unsupported Media Type", code="unsupported_image")
    return Act(reply(said=verdict(int(request.body))))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "below").mkdir()
    for name, body in {"a.png": "11", "b.png": "no", "below/c.jpg": "12", "notes.txt": "13"}.items():
        (tmp_path / name).write_text(body)
    return tmp_path


def test_every_picture_of_a_folder_is_asked_about(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(door) as served:
        assert asked(photos, "--url", served.url, "--setting", "fast", "--deadline-ms", "900") == 1
        posts = [request for request in served.seen if request.method == "POST"]
    printed = capsys.readouterr()
    first, second, line = printed.out.splitlines()
    found = json.loads(line)
    assert first.startswith(f"{photos / 'a.png'}: class 11 (80.0%; 4 chains of fast")
    assert second.startswith(f"{photos / 'below/c.jpg'}: class 12")
    assert f"{photos / 'b.png'}: no answer: the server at {served.url} answered 415" in printed.err
    assert found["images"] == [str(photos / name) for name in ("a.png", "b.png", "below/c.jpg")]
    assert [one and one["label"] for one in found["verdicts"]] == [11, None, 12]
    assert list(found["failed"]) == [str(photos / "b.png")]
    assert found["answered_by"] == f"the server at {served.url}"
    assert {request.headers["x-metastable-setting"] for request in posts} == {"fast"}
    assert {request.headers["x-metastable-deadline-ms"] for request in posts} == {"900"}


def test_a_folder_without_one_answer_is_an_error(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "below/c.jpg"):
        (photos / name).unlink()
    with serving(door) as served:
        assert asked(photos, "--url", served.url) == 2
        (photos / "b.png").unlink()
        assert asked(photos, "--url", served.url) == 2
    printed = capsys.readouterr().err
    assert "answered 415: try again" in printed
    assert "holds no pictures" in printed


def test_one_failure_ends_it_where_pictures_were_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(door) as served:
        assert asked(photos / "a.png", photos / "b.png", "--url", served.url) == 2
        assert asked(photos / "a.png", photos / "gone.png", "--url", served.url) == 2
    printed = capsys.readouterr()
    assert "answered 415: try again" in printed.err
    assert f"{photos / 'gone.png'}: No such file" in printed.err
    assert printed.out == ""


def test_this_process_walks_a_folder_too(
    photos: Path, root: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "a.png").write_bytes((root / CAT).read_bytes())
    words = ["--in-process", "--bundle", tiny_folder]
    assert asked(photos, *words) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out.splitlines()[-1])
    assert [one and one["setting"] for one in found["verdicts"]] == ["fast", None, None]
    assert f"{photos / 'b.png'}: no answer: The image format is not supported" in printed.err
    (photos / "a.png").write_bytes(b"no")
    assert asked(photos, *words) == 2
    assert f"error: {photos / 'a.png'}: The image format is not supported" in capsys.readouterr().err


def test_a_key_is_read_from_a_file_of_one_line(tmp_path: Path) -> None:
    for text in ("abc", "abc\n", "me:abc\n", "me: abc"):
        (tmp_path / "good").write_text(text)
        assert ask.key_in(tmp_path / "good") == "abc"
    (tmp_path / "bad").write_text("one\ntwo\n")
    with pytest.raises(MetastableError, match="bad must hold one line"):
        ask.key_in(tmp_path / "bad")
