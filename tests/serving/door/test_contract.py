"""What docs/http-api.md promises, asked of a running door."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from metastable.bundle import Bundle
from tests.serving.door.conftest import png
from tests.serving.door.running import PATIENCE, Running, running

pytestmark = pytest.mark.slow

FIXED = {"X-Metastable-Seed": "7", "X-Metastable-Setting": "fast"}


def post(served: Running, path: str = "/classify", **given: Any) -> httpx.Response:
    return httpx.post(served.url + path, timeout=PATIENCE, trust_env=False, **given)


def same(answer: httpx.Response) -> dict[str, Any]:
    """An answer without what differs between two requests."""
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return {name: value for name, value in body.items() if name not in ("request_id", "timings_ms")}


def alike(one: Any, other: Any) -> bool:
    """Equal but for the last digits of numbers: images that are computed in one batch may differ in them."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)
    return bool(one == other)


def refused(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    assert body["error"]["code"] == code
    message: str = body["error"]["message"]
    return message


def test_every_form_of_a_request_has_the_same_answer(served: Running) -> None:
    image = png()
    plain = same(post(served, content=image, headers=FIXED))
    assert plain["setting"] == "fast"
    assert plain["chains"] == 3
    assert plain["image"] == {"format": "PNG", "original_size": [32, 32], "resized": False, "notes": []}
    typed = FIXED | {"Content-Type": "image/png"}
    curls = FIXED | {"Content-Type": "application/x-www-form-urlencoded"}
    options = {"seed": "7", "setting": "fast"}
    text = base64.b64encode(image).decode()
    others = [
        post(served, content=image, headers=typed),
        post(served, content=image, headers=curls),
        post(served, "/predictions/metastable", content=image, headers=FIXED),
        post(served, content=image, params=options),
        post(served, content=gzip.compress(image), headers=FIXED | {"Content-Encoding": "gzip"}),
        post(served, content=zlib.compress(image), headers=FIXED | {"Content-Encoding": "deflate"}),
        post(served, files={"image": image}, data=options),
        post(served, files={"image": ("cat.png", image, "image/png")}, headers=FIXED),
        post(served, json={"image": text, "seed": 7, "setting": "fast"}),
        post(served, json={"image": text}, headers=FIXED),
    ]
    for answer in others:
        assert same(answer) == plain


@pytest.mark.parametrize("form", ["json", "multipart"])
def test_several_images_have_an_outcome_each(served: Running, form: str) -> None:
    images = [png(1), b"no image", png(2)]
    if form == "json":
        answer = post(
            served, json={"images": [base64.b64encode(one).decode() for one in images]}, headers=FIXED
        )
    else:
        answer = post(served, files=[("images", one) for one in images], headers=FIXED)
    assert answer.status_code == 200
    first, second, third = answer.json()["results"]
    assert second["error"]["code"] == "unsupported_image"
    for seed, one in ((1, first), (2, third)):
        alone = same(post(served, content=png(seed), headers=FIXED))
        assert alike({k: v for k, v in one.items() if k in alone}, alone)


def test_one_in_the_plural_is_a_list(served: Running) -> None:
    answer = post(served, json={"images": [base64.b64encode(png()).decode()]}, headers=FIXED)
    assert [one["label"] for one in answer.json()["results"]] == [
        same(post(served, content=png(), headers=FIXED))["label"]
    ]


BAD: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "nothing": ({"content": b""}, 400, "malformed_request", "the body is empty"),
    "text": ({"content": b"hello"}, 415, "unsupported_image", "PNG, JPEG, WebP"),
    "cut off": ({"content": png()[:-20]}, 400, "invalid_image", "truncated"),
    "two images": (
        {"files": [("image", png()), ("image", png(1))]},
        400,
        "malformed_request",
        "more than one",
    ),
    "two of two names": (
        {"files": [("image", png()), ("file", png(1))]},
        400,
        "malformed_request",
        "exactly one",
    ),
    "singular and plural": (
        {"files": [("image", png()), ("images", png(1))]},
        400,
        "malformed_request",
        "exactly one",
    ),
    "two settings": (
        {"files": [("image", png()), ("setting", (None, "fast")), ("setting", (None, "none"))]},
        400,
        "malformed_request",
        "setting is there twice",
    ),
    "two different headers": (
        {"content": png(), "headers": [("X-Metastable-Setting", "fast"), ("X-Metastable-Setting", "none")]},
        422,
        "invalid_option",
        "given twice",
    ),
    "header and query": (
        {"content": png(), "headers": FIXED, "params": {"setting": "none"}},
        422,
        "invalid_option",
        "given twice",
    ),
    "an unknown field": (
        {"files": {"image": png()}, "data": {"settings": "fast"}},
        422,
        "invalid_option",
        "form field has an unknown name",
    ),
    "an unknown query": (
        {"content": png(), "params": {"x": "1"}},
        422,
        "invalid_option",
        "query has an unknown",
    ),
    "an unknown header": (
        {"content": png(), "headers": {"X-Metastable-Permit": "x"}},
        422,
        "invalid_option",
        "X-Metastable-... has an unknown name",
    ),
    "an unknown setting": (
        {"content": png(), "params": {"setting": "x"}},
        422,
        "invalid_option",
        "setting must be one of none, fast",
    ),
    "no form": (
        {"content": png(), "headers": {"Content-Type": "multipart/form-data"}},
        400,
        "malformed_request",
        "boundary",
    ),
    "half a form": (
        {
            "content": b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc',
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        400,
        "malformed_request",
        "cut off",
    ),
    "a part without a name": (
        {
            "content": b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n",
            "headers": {"Content-Type": "multipart/form-data; boundary=x"},
        },
        400,
        "malformed_request",
        "has no name",
    ),
    "no JSON": (
        {"content": png(), "headers": {"Content-Type": "application/json"}},
        400,
        "malformed_request",
        "no JSON object",
    ),
    "a JSON list": ({"json": [1]}, 400, "malformed_request", "no JSON object"),
    "JSON without an image": ({"json": {}}, 400, "malformed_request", "either `image` or `images`"),
    "JSON with both": ({"json": {"image": "", "images": [""]}}, 400, "malformed_request", "either `image`"),
    "no base64": ({"json": {"image": "???"}}, 400, "malformed_request", "no base64"),
    "an unknown JSON field": (
        {"json": {"image": "", "x" * 999: 1}},
        422,
        "invalid_option",
        "unknown field: use",
    ),
    "a wrong JSON option": ({"json": {"image": "", "top_k": 0}}, 422, "invalid_option", "top_k"),
    "an encoding": (
        {"content": png(), "headers": {"Content-Encoding": "br"}},
        415,
        "unsupported_image",
        "Content-Encoding",
    ),
    "half a gzip": (
        {"content": gzip.compress(png())[:-9], "headers": {"Content-Encoding": "gzip"}},
        400,
        "malformed_request",
        "gzip",
    ),
    "a bomb": (
        {"content": gzip.compress(bytes(30_000_000)), "headers": {"Content-Encoding": "gzip"}},
        413,
        "too_large",
        "above 24000000 bytes",
    ),
    "too many images": (
        {"json": {"images": ["AA=="] * 33}},
        413,
        "too_large",
        "33 images in the request: send at most 32",
    ),
    "a large body": ({"content": bytes(24_000_001)}, 413, "too_large", "above 24000000 bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said(name: str, served: Running) -> None:
    given, status, code, message = BAD[name]
    said = refused(post(served, **given), status, code)
    assert message in said
    assert len(said) < 300
    assert served.door.budget.held == 0


def test_a_body_of_unknown_length_is_bounded_too(served: Running) -> None:
    def pieces() -> Any:
        for _ in range(100):
            yield bytes(1_000_000)

    # The server answers before it has read everything, and may close meanwhile.
    try:
        answer = post(served, content=pieces())
    except httpx.TransportError:
        return
    refused(answer, 413, "too_large")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
def test_other_methods_are_told_which_is_right(method: str, served: Running) -> None:
    answer = httpx.request(method, served.url + "/classify", trust_env=False)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    if method != "HEAD":
        refused(answer, 405, "method_not_allowed")


def test_options_says_what_a_path_takes(served: Running) -> None:
    for path, methods in (("/classify", "POST"), ("/livez", "GET")):
        answer = httpx.request("OPTIONS", served.url + path, trust_env=False)
        assert (answer.status_code, answer.headers["allow"], answer.content) == (204, methods, b"")
    assert "access-control-allow-origin" not in answer.headers


def test_head_is_get_without_a_body(served: Running) -> None:
    for path in ("/livez", "/readyz", "/v2", "/openapi.json"):
        whole, head = (httpx.request(m, served.url + path, trust_env=False) for m in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (whole.status_code, b"")
        assert head.headers["content-length"] == str(len(whole.content))


def test_other_paths_are_not_there(served: Running) -> None:
    for path in ("/", "/predictions/other", "/classify/", "/docs", "/../etc/passwd"):
        assert "/classify" in refused(httpx.get(served.url + path, trust_env=False), 404, "not_found")


def test_live_and_ready_are_two_things(tiny: Bundle) -> None:
    """A server that is told to stop says so, finishes what is under way, and ends."""
    paths = ("/livez", "/readyz", "/ping", "/v2/health/live", "/v2/health/ready")
    with running(tiny, grace_seconds=PATIENCE) as served:
        for path in paths:
            assert httpx.get(served.url + path, trust_env=False).status_code == 200
        going_on = threading.Event()
        held = served.backend._driver.call(lambda: going_on.wait(PATIENCE))
        with ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(post, served, content=png(), headers=FIXED)
            while not served.backend._looks._waiting:
                going_on.wait(0.01)
            served.stop.ask()
            assert httpx.get(served.url + "/livez", trust_env=False).status_code == 200
            ready = httpx.get(served.url + "/readyz", trust_env=False)
            refused(ready, 503, "draining")
            assert int(ready.headers["retry-after"]) >= 1
            refused(post(served, content=png()), 503, "draining")
            going_on.set()
            held.result(PATIENCE)
            assert same(under_way.result(PATIENCE))
        served.stop.ask()
        served.thread.join(PATIENCE)
        with pytest.raises(httpx.ConnectError):
            httpx.get(served.url + "/livez", trust_env=False)


def test_a_client_that_leaves_takes_its_chains_with_it(served: Running) -> None:
    """Settings that would go on for minutes end within a segment."""
    labels = {"setting": "fast", "outcome": "cancelled", "arm": ""}
    before = served.count("requests_total", **labels)
    admission = served.backend._engine.admission
    stop = threading.Event()
    # The engine's thread is kept busy, so that the request cannot be over before the client leaves.
    held = served.backend._driver.call(lambda: stop.wait(PATIENCE))
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(served.url + "/classify", content=png(), timeout=0.5, trust_env=False, headers=FIXED)
    stop.set()
    held.result(PATIENCE)

    def let_go() -> bool:
        return served.count("requests_total", **labels) > before and not admission.out

    until = time.monotonic() + PATIENCE
    while not let_go() and time.monotonic() < until:
        time.sleep(0.01)
    assert let_go()
    assert same(post(served, content=png(), headers=FIXED))


def test_requests_that_are_named_alike_are_two(served: Running) -> None:
    """Also where one is called what an image of another would be."""
    names = ["same", "same", "same", "same.0"]
    with ThreadPoolExecutor(len(names)) as pool:
        answers = list(
            pool.map(lambda name: post(served, content=png(), headers=FIXED | {"X-Request-Id": name}), names)
        )
    assert [one.json()["request_id"] for one in answers] == names
    assert all(alike(same(one), same(answers[0])) for one in answers)


@pytest.mark.parametrize("name", ["Content-Type", "Content-Encoding"])
def test_a_header_that_is_there_twice_is_refused(name: str, served: Running) -> None:
    value = {"Content-Type": "image/png", "Content-Encoding": "gzip"}[name]
    answer = post(served, content=gzip.compress(png()), headers=[(name, value)] * 2)
    assert answer.status_code in (400, 415)


def test_what_waits_is_told_when_it_is_asked_for(served: Running) -> None:
    going_on = threading.Event()
    held = served.backend._driver.call(lambda: going_on.wait(PATIENCE))
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(post, served, content=png(), headers=FIXED)
        while not served.backend._looks._waiting:
            going_on.wait(0.01)
        assert served.count("backlog_seconds") > 0
        going_on.set()
        held.result(PATIENCE)
        assert same(under_way.result(PATIENCE))
    assert served.count("backlog_seconds") == 0


def test_a_deadline_counts_what_was_waited(served: Running) -> None:
    stop = threading.Event()
    held = served.backend._driver.call(lambda: stop.wait(PATIENCE))
    answer = post(served, content=png(), headers={"X-Metastable-Deadline-Ms": "50"})
    refused(answer, 504, "deadline_exceeded")
    stop.set()
    held.result(PATIENCE)


def test_exact_pixels_come_as_they_are(served: Running) -> None:
    file = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = io.BytesIO()
    np.save(data, file)
    as_npy = same(post(served, content=data.getvalue(), headers=FIXED))
    as_png = same(post(served, content=png(0), headers=FIXED))
    assert as_npy | {"image": None} == as_png | {"image": None}


def test_openapi_names_every_path(served: Running) -> None:
    found = httpx.get(served.url + "/openapi.json", trust_env=False).json()
    assert json.dumps(found)
    assert set(found["paths"]) >= {
        "/classify",
        "/predictions/metastable",
        "/livez",
        "/readyz",
        "/v2",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
    }
