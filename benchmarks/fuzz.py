"""Mutated requests against a door that runs: what it answers, whether it hangs, what its memory does.

Each request is a valid one of one of the forms that the door takes, with some of its bytes flipped, cut out,
doubled, moved or put in, sent over a socket of its own.  A client's fault must never be answered with a 5xx
(503 says that there is no room, which is no fault of the server; 504 that a deadline passed), and every
request must end: in an answer, or in a closed connection.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
from tqdm import tqdm

from metastable.errors import MetastableError

PATIENCE = 60.0
"""Seconds after which a request counts as hanging: more than every deadline of the door."""
HANGS, CLOSED, GARBAGE = "hangs", "closed", "garbage"
_FINE = re.compile(r"[1234]\d\d|503|504|closed")


@contextlib.contextmanager
def serving(bundle: Path, port: int, metrics_port: int) -> Iterator[psutil.Process]:
    """A door with an engine in its process, as a process."""
    command = [
        sys.executable,
        "-m",
        "metastable",
        "serve",
        "--engine",
        "local",
        "--bundle",
        str(bundle.resolve()),
    ]
    command += [
        "--port",
        str(port),
        "--metrics-port",
        str(metrics_port),
        "--runner",
        "torch",
        "--threads",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            if not any(line.strip().startswith("stop:") for line in process.stdout):
                raise MetastableError("the server did not start: try `metastable serve --engine local`")
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def valid(image: bytes) -> list[bytes]:
    """Requests of every form that the door takes."""
    text = base64.b64encode(image).decode()
    form = (
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        + image
        + b'\r\n--b\r\nContent-Disposition: form-data; name="setting"\r\n\r\nnone\r\n--b--\r\n'
    )
    tensor = {"name": "image", "shape": [1, 3, 2, 2], "datatype": "FP32", "data": [0.5] * 12}
    infer = "/v2/models/metastable/infer"
    packed = json.dumps(
        {"inputs": [tensor | {"data": None, "parameters": {"binary_data_size": 48}}]}
    ).encode()
    length = {"Inference-Header-Content-Length": str(len(packed))}
    none = {"X-Metastable-Setting": "none"}
    return [
        _request("/classify?top_k=5", image, none),
        _request("/predictions/metastable", image, none | {"Content-Type": "image/png"}),
        _request("/classify", gzip.compress(image), none | {"Content-Encoding": "gzip"}),
        _request("/classify", form, {"Content-Type": "multipart/form-data; boundary=b"}),
        _request("/classify", json.dumps({"image": text, "setting": "none"}).encode(), _JSON),
        _request("/classify", json.dumps({"images": [text, text], "setting": "none"}).encode(), _JSON),
        _request(infer, json.dumps({"inputs": [tensor]}).encode(), none | _JSON),
        _request(infer, packed + bytes(48), none | length),
        b"GET /v2/models/metastable HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"POST /classify?setting=none HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"%x\r\n" % len(image)
        + image
        + b"\r\n0\r\n\r\n",
    ]


_JSON = {"Content-Type": "application/json"}


def _request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: a", "Connection: close", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def mutated(whole: bytes, rng: random.Random) -> bytes:
    """Some bytes changed: of the body, with the length that it then has, or anywhere."""
    head, end, body = whole.partition(b"\r\n\r\n")
    if body and rng.random() < 0.7:
        changed = _changed(body, rng)
        length = b"Content-Length: %d" % len(changed)
        return re.sub(rb"\bContent-Length: \d+", length, head, count=1) + end + changed
    return _changed(whole, rng)


def _changed(whole: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut out, doubled, moved, or others put in."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        at, count = rng.randrange(len(data)), rng.choice((1, 1, 2, 4, 16, 64))
        other = rng.randrange(len(data))
        match rng.randrange(7):
            case 0:
                data[at] = rng.randrange(256)
            case 1:
                del data[at : at + count]
            case 2:
                data[at:at] = data[at : at + count] * rng.choice((1, 2, 50))
            case 3:
                data[at:at] = rng.randbytes(count)
            case 4:
                data[at:at] = rng.choice(_TOKENS)
            case 5:
                data[at:at] = data[other : other + count]
            case _:
                del data[at:]
    return bytes(data)


_TOKENS = (
    *(b"\r\n", b"\n", b"\0", b":", b" ", b"\t", b"--b", b"--b--", b"{", b"}", b"[", b"]", b'"', b",", b"-1"),
    *(b"99999999999999999999", b"NaN", b"null", b"true", b"%00", b"%2e%2e", b"/", b"?setting=fast", b"GET "),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"HTTP/1.0"),
    *(b"X-Metastable-Deadline-Ms: 1\r\n", b"X-Metastable-Setting: fast\r\n", b"Upgrade: websocket\r\n"),
)


def sent(port: int, data: bytes) -> str:
    """What became of a request: the status of the last answer, or a name."""
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)  # nothing more comes: what is cut off ends at once
            received = b""
            while piece := client.recv(65536):
                received += piece
    except TimeoutError:
        return HANGS
    except OSError:
        return CLOSED
    if not received:
        return CLOSED
    found = re.findall(rb"HTTP/1\.1 (\d\d\d) ", received)
    return found[-1].decode() if found else GARBAGE


def measure(
    bundle: Path, image: bytes, work: Path, *, count: int, seed: int, ports: tuple[int, int], warm: int = 2000
) -> dict[str, Any]:
    """Send `count` mutated requests, eight at a time; those that went wrong are written to `work`.

    `warm` others come before memory is first looked at.
    """
    port = ports[0]
    requests = valid(image)
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    work.mkdir(parents=True, exist_ok=True)

    def one(number: int) -> tuple[bytes, str]:
        rng = random.Random(f"{seed} {number}")
        data = mutated(rng.choice(requests), rng)
        return data, sent(port, data)

    with serving(bundle, *ports) as server, ThreadPoolExecutor(8) as pool:
        for request in requests:
            if (status := sent(port, request)) != "200":
                raise MetastableError(f"a valid request was answered {status}: {request[:60]!r}")
        list(pool.map(one, range(-warm, 0)))
        before, started = server.memory_info().rss, time.monotonic()
        for data, outcome in tqdm(pool.map(one, range(count)), "requests", count):
            outcomes[outcome] += 1
            if not _FINE.fullmatch(outcome):
                path = work / f"{len(wrong)}-{outcome}.bin"
                path.write_bytes(data)
                wrong.append(path.name)
        seconds = time.monotonic() - started
        after, files = server.memory_info().rss, server.num_fds()
        ready = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=PATIENCE).status_code
        still = sent(port, requests[0])
    return {
        "n": count,
        "seed": seed,
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong,
        "requests_a_second": round(count / seconds, 1),
        "mb_before": round(before / 1e6, 1),
        "mb_after": round(after / 1e6, 1),
        "open_files": files,
        "ready_afterwards": ready == 200 and still == "200",
    }
