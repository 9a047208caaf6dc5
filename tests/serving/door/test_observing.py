"""The line of each request: what it says of every way in which one ends, and that no client writes in it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from metastable.bundle import Bundle
from metastable.serving.door.observing import Observer
from tests.serving.door.conftest import png
from tests.serving.door.running import PATIENCE, Running, running
from tests.serving.door.served import Client
from tests.serving.door.written import MARK, Log, logging_to

pytestmark = pytest.mark.slow

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = f"00-{TRACE_ID}-b7ad6b7169203331-00"


@pytest.fixture(scope="module")
def both(tiny: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Log]]:
    with (
        logging_to(tmp_path_factory.mktemp("log") / "log") as log,
        running(tiny, observer=Observer()) as door,
    ):
        yield door, log


def post(door: Running, path: str = "/classify", **given: Any) -> httpx.Response:
    return httpx.post(door.url + path, trust_env=False, timeout=PATIENCE, **given)


def test_an_answer_has_ids_facts_and_times(both: tuple[Running, Log]) -> None:
    door, log = both
    body = png()
    headers = {"X-Request-Id": "mine", "Traceparent": TRACE, "X-Metastable-Setting": "fast"}
    answer = post(door, content=body, headers=headers).json()
    [line] = log.next()
    seconds = line.pop("seconds")
    assert line.pop("time")[-1] == "Z"
    assert line == {
        "level": "info",
        "logger": "metastable.serving.requests",
        "event": "request",
        "request_id": "mine",
        "trace_id": TRACE_ID,
        "method": "POST",
        "route": "/classify",
        "status": 200,
        "code": "ok",
        "setting": "fast",
        "bytes_in": len(body),
        "images": 1,
        "failed": 0,
        "chains": answer["chains"],
        "steps": answer["steps"],
        "decided": int(answer["decided"]),
        "late": 0,
        "flagged": int(answer["anomaly"]["flagged"] or bool(answer["anomaly"]["shift"]["flagged"])),
    }
    stages = {"receive", "decode", "anomaly", "queue", "purify", "classify", "total"}
    assert set(seconds) == stages
    assert sum(seconds[one] for one in stages - {"total"}) <= seconds["total"] + 1e-5
    told = {stage: 1e-3 * spent for stage, spent in answer["timings_ms"].items() if stage != "total"}
    assert {stage: seconds[stage] for stage in told} == pytest.approx(told, abs=1e-5)


def test_several_images_are_one_line_with_their_sums(both: tuple[Running, Log]) -> None:
    door, log = both
    images = [png(1), b"no image", png(2)]
    texts = [base64.b64encode(one).decode() for one in images]
    found = post(door, json={"images": texts}).json()["results"]
    [line] = log.next()
    assert (line["code"], line["images"], line["failed"]) == ("ok", 3, 1)
    assert line["chains"] == found[0]["chains"] + found[2]["chains"]
    assert line["decided"] == found[0]["decided"] + found[2]["decided"]


def infer(door: Running, datatype: str = "FP32") -> int:
    data = np.full((1, 3, 32, 32), 0.5).ravel().tolist()
    one = {"name": "image", "shape": [1, 3, 32, 32], "datatype": datatype, "data": data}
    return post(door, "/v2/models/metastable/infer", json={"inputs": [one]}).status_code


def test_the_inference_protocol_is_told_alike(both: tuple[Running, Log]) -> None:
    door, log = both
    assert (infer(door), infer(door, "FP8")) == (200, 400)
    good, bad = log.next(2)
    assert good["route"] == bad["route"] == "/v2/models/{name}/infer"
    assert (good["status"], good["code"], good["images"]) == (200, "ok", 1)
    assert (bad["status"], bad["code"]) == (400, "malformed_request")
    assert "images" not in bad


REFUSED: list[tuple[str, str, dict[str, Any], int, str, str | None]] = [
    ("POST", "/classify", {"content": b"no image"}, 415, "unsupported_image", "/classify"),
    ("POST", "/classify?setting=x", {"content": b""}, 422, "invalid_option", "/classify"),
    ("POST", "/v2/models/other/infer", {"content": b""}, 404, "not_found", "/v2/models/{name}/infer"),
    ("GET", "/nowhere", {}, 404, "not_found", None),
    ("PUT", "/nowhere", {}, 404, "not_found", None),
]


@pytest.mark.parametrize(("method", "path", "given", "status", "code", "route"), REFUSED)
def test_a_refusal_has_its_code(
    method: str,
    path: str,
    given: dict[str, Any],
    status: int,
    code: str,
    route: str | None,
    both: tuple[Running, Log],
) -> None:
    door, log = both
    answer = httpx.request(method, door.url + path, trust_env=False, timeout=PATIENCE, **given)
    [line] = log.next()
    assert answer.status_code == status
    assert (line["method"], line["status"], line["code"], line["route"]) == (method, status, code, route)
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["level"] == "info"


def test_head_is_told_with_its_route(both: tuple[Running, Log]) -> None:
    door, log = both
    assert httpx.head(door.url + "/v2", trust_env=False).status_code == 200
    [line] = log.next()
    assert (line["method"], line["route"], line["code"]) == ("HEAD", "/v2", "ok")


FORGED: list[tuple[str, tuple[str, ...]]] = [
    (f"GET /{MARK}%0a%7b%22event%22:1%7d", ()),
    (f"GET /classify?{MARK}=%0d%0a{MARK}", ()),
    (f"POST /classify?setting={MARK}", ()),
    (f"{MARK} /classify", ()),
    (f"GET /v2/models/{MARK}", ()),
    (f"GET /v2/models/metastable/versions/{MARK}/ready", ()),
    ("GET /v2", (f'X-Request-Id: {MARK}"', f"Traceparent: {MARK}", f"User-Agent: {MARK}")),
    ("GET /v2", (f"X-Request-Id: {MARK}\x85", f"Tracestate: {MARK}=1", f"Referer: {MARK}")),
    ("POST /classify", (f"X-Metastable-{MARK}: 1",)),
    ("POST /classify", (f"Content-Type: multipart/form-data; boundary={MARK}",)),
    ("POST /classify", (f"Content-Encoding: {MARK}",)),
    ("POST /classify", ("Content-Type: application/json",)),
    ("POST /v2/models/metastable/infer", ()),
    (f"CONNECT {MARK}:1", ()),
    (f"OPTIONS /{MARK}", (f"Origin: https://{MARK}.org",)),
]


@pytest.mark.parametrize(("first", "fields"), FORGED)
def test_no_client_can_write_in_a_line(
    first: str, fields: tuple[str, ...], both: tuple[Running, Log]
) -> None:
    door, log = both
    body = f'{{"{MARK}": "{MARK}\n{MARK}"'.encode() if first.startswith("POST") else b""
    with Client(("127.0.0.1", door.port)) as client:
        lines = [f"{first} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}", *fields]
        client.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        assert client.answer().status < 500
    log.next()
    assert MARK not in log.text


def test_a_level_hides_and_shows(tiny: Bundle, tmp_path: Path) -> None:
    def ask(door: Running) -> None:
        for path in ("/livez", "/readyz", "/nowhere"):
            httpx.get(door.url + path, trust_env=False)

    for level, wanted in (("debug", ["/livez", "/readyz", None]), ("info", [None]), ("warning", [])):
        path = tmp_path / level
        with logging_to(path, level) as log, running(tiny, observer=Observer()) as door:
            ask(door)
        assert [line["route"] for line in log.next(len(wanted))] == wanted


def test_a_full_disk_stops_no_answer(tiny: Bundle) -> None:
    with logging_to(Path("/dev/full")), running(tiny, observer=Observer()) as door:
        for _ in range(3):
            assert post(door, content=png()).status_code == 200
