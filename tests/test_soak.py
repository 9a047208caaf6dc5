"""Two thousand requests over HTTP at mixed settings, on a small bundle: each gets its own answer."""

import itertools
import random
import re
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from export import mar
from tests.launched import PATIENCE, REPOSITORY, launched

pytestmark = pytest.mark.server

REQUESTS, CLIENTS = 2000, 12
CAT = REPOSITORY / "samples" / "cat.png"
SETTINGS = ("none", "fast", "softmax", "langevin")


@pytest.mark.timeout(4 * PATIENCE)
def test_every_one_of_2000_requests_has_its_own_answer(tiny_folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "metastable.mar"
    mar.build(tiny_folder, REPOSITORY / "model-config.yaml", archive)
    good, bad = CAT.read_bytes(), b"not an image"
    with launched(tmp_path, archive, "--sample", str(CAT)) as server:
        server.until_ready()
        numbers = itertools.count()

        def client(seed: int) -> list[tuple[str, str, int, str]]:
            rng, seen = random.Random(seed), []
            with httpx.Client(timeout=PATIENCE, trust_env=False) as session:
                while next(numbers) < REQUESTS:
                    setting = rng.choice(SETTINGS)
                    headers = {
                        "Content-Type": "application/octet-stream",
                        "X-Metastable-Setting": setting,
                    }
                    if rng.random() < 0.1:
                        headers["X-Metastable-Deadline-Ms"] = "1"
                    reply = session.post(
                        f"http://127.0.0.1:{server.ports[0]}/classify",
                        content=bad if rng.random() < 0.1 else good,
                        headers=headers,
                    )
                    body = reply.json()
                    assert body["request_id"] == reply.headers["x-request-id"]
                    outcome = body["error"]["code"] if "error" in body else body["setting"]
                    seen.append((body["request_id"], setting, reply.status_code, outcome))
            return seen

        with ThreadPoolExecutor(CLIENTS) as pool:
            seen = [one for many in pool.map(client, range(CLIENTS)) for one in many]
        metrics = httpx.get(f"http://127.0.0.1:{server.ports[1]}/metrics", trust_env=False).text
        server.process.send_signal(signal.SIGTERM)
        status, output = server.finish()
        assert status == 0, output

    assert len(seen) == REQUESTS == len({id for id, *_ in seen})
    for _, setting, code, outcome in seen:
        assert (code, outcome) in {(200, setting), (415, "unsupported_image"), (504, "deadline_exceeded")}
    counted = Counter(outcome for *_, outcome in seen)
    assert min(counted[name] for name in (*SETTINGS, "unsupported_image")) > 50
    for name in SETTINGS:
        found = re.search(
            rf'^metastable_requests_total\{{arm="",outcome="ok",setting="{name}"\}} (\S+)$', metrics, re.M
        )
        assert found is not None
        assert float(found[1]) >= counted[name]
    assert re.search(r"^metastable_chains_under_way 0\.0$", metrics, re.M)
    assert re.search(r"^metastable_backlog_seconds 0\.0$", metrics, re.M)
