"""The shipped bundle behind a real TorchServe: what a client sees."""

import io
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from export import mar
from metastable import bundle
from tests.launched import PATIENCE, REPOSITORY, Launched, launched

pytestmark = pytest.mark.server

OCTETS = {"Content-Type": "application/octet-stream"}
CAT = (REPOSITORY / "samples" / "cat.png").read_bytes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    folder = tmp_path_factory.mktemp("live")
    archive = folder / "metastable.mar"
    mar.build(REPOSITORY / "model_store" / "cifar10", REPOSITORY / "model-config.yaml", archive)
    with launched(folder, archive, "--sample", str(REPOSITORY / "samples" / "cat.png")) as one:
        one.until_ready()
        yield one
        one.process.send_signal(signal.SIGTERM)
        status, output = one.finish()
        assert status == 0, output
        assert one.alive() == []


@pytest.fixture(scope="module")
def client(server: Launched) -> Iterator[httpx.Client]:
    base = f"http://127.0.0.1:{server.ports[0]}"
    with httpx.Client(base_url=base, timeout=PATIENCE, trust_env=False) as one:
        yield one


def predict(client: httpx.Client, body: bytes, **headers: str) -> httpx.Response:
    named = {"X-Metastable-" + k.replace("_", "-"): v for k, v in headers.items()}
    return client.post("/classify", content=body, headers=OCTETS | named)


@pytest.mark.timeout(3 * PATIENCE)
def test_every_setting_answers(client: httpx.Client, shipped: Path) -> None:
    loaded = bundle.load(shipped)
    for name, setting in loaded.settings.by_name.items():
        reply = predict(client, CAT, setting=name)
        assert reply.status_code == 200, reply.text
        assert reply.headers["content-type"] == "application/json"
        verdict = reply.json()
        assert verdict["setting"] == name
        if setting.delta is None:
            assert verdict["chains"] == setting.chains
        else:
            assert verdict["chains"] <= setting.chains
            assert verdict["decided"] or verdict["chains"] == setting.chains
        assert verdict["model"]["digest"] == loaded.digest
        assert verdict["request_id"] == reply.headers["x-request-id"]


def test_trained_weights_know_the_samples(client: httpx.Client, shipped: Path) -> None:
    classes = bundle.load(shipped).classes
    right = 0
    for name in classes:
        verdict = predict(
            client, (REPOSITORY / "samples" / f"{name}.png").read_bytes(), setting="fast"
        ).json()
        right += verdict["class"] == name
    assert right >= 8


def test_forms_headers_and_exact_pixels(client: httpx.Client) -> None:
    form = client.post("/classify", files={"image": ("x.png", CAT)}, data={"setting": "none", "top_k": "2"})
    assert form.status_code == 200
    assert len(form.json()["top"]) == 2
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(Image.open(io.BytesIO(CAT)).convert("RGB")))
    exact = predict(client, buffer.getvalue(), setting="none", top_k="10").json()
    same = predict(client, CAT, setting="none", top_k="10").json()
    assert exact["top"] == same["top"]
    assert exact["image"]["format"] == "NPY"


def test_a_large_photo_is_resized_and_says_so(client: httpx.Client) -> None:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(CAT)).resize((640, 480)).save(buffer, "JPEG")
    verdict = predict(client, buffer.getvalue(), setting="none").json()
    assert verdict["image"]["resized"] is True
    assert verdict["image"]["original_size"] == [640, 480]


def test_bad_requests_have_their_own_status_beside_good_ones(client: httpx.Client) -> None:
    cases: list[tuple[bytes, dict[str, str], int, str]] = [
        (CAT, {"setting": "none"}, 200, ""),
        (b"", {}, 400, "malformed_request"),
        (b"GIF89a" + bytes(50), {}, 415, "unsupported_image"),
        (CAT[:200], {}, 400, "invalid_image"),
        (CAT, {"setting": "magic"}, 422, "invalid_option"),
        (CAT, {"seed": "1"}, 422, "invalid_option"),
        (CAT, {"deadline_ms": "1", "setting": "balanced"}, 504, "deadline_exceeded"),
        (CAT + bytes(16_000_000), {}, 413, "too_large"),
    ] * 3
    with ThreadPoolExecutor(len(cases)) as pool:
        replies = list(pool.map(lambda case: predict(client, case[0], **case[1]), cases))
    for (_, _, status, code), reply in zip(cases, replies, strict=True):
        assert reply.status_code == status, reply.text
        if code:
            assert reply.json()["error"]["code"] == code
            assert "Traceback" not in reply.text


def test_metrics_count_settings_outcomes_and_stages(server: Launched, client: httpx.Client) -> None:
    def value(pattern: str) -> float:
        text = httpx.get(f"http://127.0.0.1:{server.ports[1]}/metrics", trust_env=False).text
        found = re.search(rf"^{pattern} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    ok = r'metastable_requests_total\{arm="",outcome="ok",setting="fast"\}'
    purify = r'metastable_stage_seconds_count\{stage="purify"\}'
    before = value(ok), value(purify)
    assert predict(client, CAT, setting="fast").status_code == 200
    assert (value(ok), value(purify)) == (before[0] + 1, before[1] + 1)


def test_logs_hold_no_image_and_no_client_text(server: Launched, client: httpx.Client) -> None:
    predict(client, b"secret-marker-in-body", setting="secret-marker-in-header")
    for path in (server.run_folder / "logs").iterdir():
        assert "secret-marker" not in path.read_text(errors="replace"), path


@pytest.mark.timeout(3 * PATIENCE)
def test_the_demo_runs_against_it(server: Launched, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo", "--images", "cat,ship", "--steps", "5", "--setting", "fast"]
    command += ["--url", f"http://127.0.0.1:{server.ports[0]}/classify"]
    command += ["--picture", str(tmp_path / "demo.png")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["images"] == 2
    assert "attacked" in done.stdout
    assert (tmp_path / "demo.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.timeout(2 * PATIENCE)
def test_ask_asks_it(server: Launched, client: httpx.Client) -> None:
    command = [sys.executable, "-m", "metastable", "ask", "samples/cat.png", "samples/ship.png"]
    command += ["--url", f"http://127.0.0.1:{server.ports[0]}", "--setting", "none", "--top-k", "4"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answered_by"] == f"the server at {command[7]}"
    assert found["verdicts"][0]["class"] == predict(client, CAT, setting="none").json()["class"]
    assert [len(one["top"]) for one in found["verdicts"]] == [4, 4]
    refused = subprocess.run(
        [*command, "--deadline-ms", "0"], cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE
    )
    assert refused.returncode == 2
    assert "answered 422: deadline_ms must be a whole number" in refused.stderr


def test_the_demo_without_a_server_says_what_to_do() -> None:
    command = [sys.executable, "-m", "demo", "--images", "cat", "--steps", "1"]
    command += ["--url", "http://127.0.0.1:9/classify"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "run `make serve` first" in done.stderr
