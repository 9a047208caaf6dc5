"""The example of nginx before the real door, and before a small application behind the same server."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from metastable.bundle import Bundle
from metastable.serving.door.clients import Proxies
from metastable.serving.door.intake import Intake
from metastable.serving.door.limits import Limits
from metastable.serving.options import MAX_DEADLINE_MS
from tests.deploy.proxied import EXAMPLE, Proxied, needs_nginx, proxied
from tests.launched import free_port
from tests.serving.door.conftest import png
from tests.serving.door.running import running
from tests.serving.door.served import PATIENCE, Served, request, serving

BEHIND = Proxies(["127.0.0.1"])


@pytest.fixture(scope="module")
def front(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    """Before the real door."""
    with running(tiny, proxies=BEHIND) as door, proxied(tmp_path_factory.mktemp("nginx"), door.port) as found:
        yield found


@pytest.fixture
def before(tmp_path: Path) -> Iterator[tuple[Served, Proxied]]:
    """Before a small application."""
    with serving(proxies=BEHIND) as door, proxied(tmp_path, door.address[1]) as found:
        yield door, found


def number(pattern: str) -> float:
    found = re.findall(rf"^\s*{pattern};", EXAMPLE.read_text(), re.MULTILINE)
    assert len(found) == 1, pattern
    return float(found[0])


def test_its_limits_fit_those_of_the_door() -> None:
    door = Limits()
    assert number(r"client_max_body_size (\d+)m") * 2**20 >= Intake.body
    assert number(r"client_header_timeout (\d+)s") == door.head_seconds
    assert number(r"send_timeout (\d+)s") == door.write_seconds
    assert number(r"client_body_timeout (\d+)s") > door.body_seconds
    assert number(r"proxy_read_timeout (\d+)s") > MAX_DEADLINE_MS / 1000
    waits = re.findall(r"^    keepalive_timeout (\d+)s;", EXAMPLE.read_text(), re.MULTILINE)
    assert float(waits[0]) < door.idle_seconds == float(waits[1])
    assert number(r"limit_conn metastable_connections (\d+)") < door.client_requests


@needs_nginx
@pytest.mark.slow
def test_an_image_over_http2_gets_a_verdict(front: Proxied, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    image = tmp_path / "image.png"
    image.write_bytes(png())
    command = ["curl", "-sS", "--noproxy", "*", "--http2", "--cacert", str(front.certificate)]
    command += ["--data-binary", f"@{image}", "-w", "\n%{http_version} %{http_code}", f"{front.url}/classify"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    verdict, _, version = done.stdout.rpartition("\n")
    assert version == "2 200"
    assert json.loads(verdict)["model"]["name"] == "tiny"


@needs_nginx
@pytest.mark.slow
def test_without_tls_there_is_only_the_way_to_it(front: Proxied) -> None:
    answer = httpx.post(f"http://127.0.0.1:{front.plain}/classify?top_k=2", trust_env=False)
    assert answer.status_code == 308
    assert answer.headers["location"] == "https://127.0.0.1/classify?top_k=2"
    with front.http() as client:
        answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.headers["strict-transport-security"] == "max-age=31536000"
    assert answer.headers["server"] == "nginx"


@needs_nginx
@pytest.mark.slow
def test_what_is_too_large_is_refused_by_the_door_or_before_it(front: Proxied) -> None:
    with front.http() as client:
        near = client.post("/classify", content=bytes(17_000_000))
        far = client.post("/classify", content=bytes(26_000_000))
    assert near.status_code == far.status_code == 413
    assert near.json()["error"]["code"] == far.json()["error"]["code"] == "too_large"
    assert "request_id" in near.json()
    assert "request_id" not in far.json()  # nginx itself
    # No image is written to a disk, of which nginx would warn.
    assert "temporary file" not in (front.folder / "error.log").read_text()


@needs_nginx
@pytest.mark.slow
def test_ids_pass_both_ways_and_only_they_are_in_the_log(front: Proxied) -> None:
    known = {"X-Request-Id": "an-id-of-ours", "X-Metastable-Setting": "secret-header"}
    with front.http() as client:
        given = client.post("/classify?setting=secret-query", content=png(), headers=known)
        made = client.post("/classify", content=png())
    assert given.status_code == 422
    assert given.headers["x-request-id"] == given.json()["request_id"] == "an-id-of-ours"
    assert made.status_code == 200
    wanted = {"an-id-of-ours", made.headers["x-request-id"]}
    until = time.monotonic() + PATIENCE
    while True:  # a line is written after the answer
        lines = [json.loads(line) for line in front.log.splitlines()]
        if wanted <= {line["request_id"] for line in lines}:
            break
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "secret" not in front.log


@needs_nginx
@pytest.mark.slow
def test_the_door_sees_the_clients_address(before: tuple[Served, Proxied]) -> None:
    door, front = before
    with front.client("127.0.0.5") as client:
        assert client.get("/echo", "X-Forwarded-For: 9.9.9.9", "X-Account: another").status == 200
    assert door.app.seen[-1]["state"]["client"] == "127.0.0.5"
    # A policy may split by it: clients cannot choose their arm.
    assert b"x-account" not in dict(door.app.seen[-1]["headers"])


@needs_nginx
@pytest.mark.slow
def test_who_hangs_up_is_missed_by_the_door(before: tuple[Served, Proxied]) -> None:
    door, front = before
    with front.client() as client:
        client.send(request("GET", "/hang"))
        assert door.app.entered.acquire(timeout=PATIENCE)
    assert door.app.left.acquire(timeout=PATIENCE)


@needs_nginx
@pytest.mark.slow
def test_a_slow_sender_gets_the_doors_408(tmp_path: Path) -> None:
    limits = dataclasses.replace(Limits(), body_seconds=0.5, body_rate=1e6)
    with (
        serving(limits, proxies=BEHIND) as door,
        proxied(tmp_path, door.address[1]) as front,
        front.client() as client,
    ):
        client.send(request("POST", "/echo", "Content-Length: 5000"))
        client.send(b"some")
        answer = client.answer()
        assert (answer.status, answer.code) == (408, "too_slow")
        assert answer.json["request_id"]
        with front.client() as other:
            assert other.get("/livez").status == 200


@needs_nginx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [(Limits(client_requests=1), 429, "too_many"), (Limits(connections=1), 503, "overloaded")],
)
def test_refusals_of_the_door_pass_with_when_to_come_back(
    tmp_path: Path, limits: Limits, status: int, code: str
) -> None:
    with (
        serving(limits, proxies=BEHIND) as door,
        proxied(tmp_path, door.address[1]) as front,
        front.client() as first,
        front.client() as second,
    ):
        first.send(request("GET", "/wait"))
        assert door.app.entered.acquire(timeout=PATIENCE)
        answer = second.get("/echo")
        assert (answer.status, answer.code) == (status, code)
        assert int(answer.fields["retry-after"]) > 0
        assert answer.json["request_id"]  # the door's, not nginx's
        door.app.opened.set()
        assert first.answer().status == 200


@needs_nginx
@pytest.mark.slow
def test_one_address_may_have_64_requests_under_way(before: tuple[Served, Proxied]) -> None:
    door, front = before
    held = [front.client() for _ in range(64)]
    for client in held:
        client.send(request("GET", "/wait"))
        assert door.app.entered.acquire(timeout=PATIENCE)
    with front.client() as more:
        answer = more.get("/echo")
    assert (answer.status, answer.code, answer.fields["retry-after"]) == (429, "too_many", "2")
    with front.client("127.0.0.5") as another:
        assert another.get("/echo").status == 200
    door.app.opened.set()
    for client in held:
        assert client.answer().status == 200
        client.close()


@needs_nginx
@pytest.mark.slow
def test_without_a_door_clients_are_told_to_come_back(tmp_path: Path) -> None:
    with proxied(tmp_path, free_port()) as front, front.client() as client:
        answer = client.get("/readyz")
    assert (answer.status, answer.code, answer.fields["retry-after"]) == (503, "unavailable", "5")
