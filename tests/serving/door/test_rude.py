"""What brought TorchServe's HTTP side down, sent to the door: valid clients in crowds, and rude ones."""

from __future__ import annotations

import io
import logging
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image

from metastable.bundle import Bundle
from metastable.engine.engine import EngineLimits
from metastable.serving.door import decoding
from metastable.serving.door.intake import Intake
from tests.serving.door.conftest import png
from tests.serving.door.running import PATIENCE, Running, running

pytestmark = pytest.mark.slow

FIXED = {"X-Metastable-Seed": "7", "X-Metastable-Setting": "none"}


def crowd(
    served: Running, bodies: list[bytes], headers: dict[str, str] | None = None
) -> list[httpx.Response]:
    """The answers to requests that are sent all at once."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(
            pool.map(
                lambda body: httpx.post(
                    served.url + "/classify", content=body, headers=headers, timeout=PATIENCE, trust_env=False
                ),
                bodies,
            )
        )


def is_well(served: Running) -> None:
    assert httpx.post(
        served.url + "/classify", content=png(), headers=FIXED, timeout=PATIENCE, trust_env=False
    ).is_success
    assert served.backend._engine.admission.out == 0
    assert served.door.budget.held == 0


def test_fifty_large_images_at_once_are_all_answered(served: Running) -> None:
    body = png(1, (812, 812))
    assert 1_900_000 < len(body) < 2_100_000
    answers = crowd(served, [body] * 50, FIXED)
    assert Counter(one.status_code for one in answers) == {200: 50}
    assert len({one.json()["label"] for one in answers}) == 1
    is_well(served)


def test_bodies_beyond_what_may_be_held_together_are_told_to_come_back(tiny: Bundle) -> None:
    body = png(1, (300, 300))
    with running(tiny, intake=Intake(body=300_000, bodies=600_000)) as served:
        answers = crowd(served, [body] * 20, FIXED)
        assert {one.status_code for one in answers} <= {200, 503}
        assert any(one.is_success for one in answers)
        for one in answers:
            assert one.is_success or int(one.headers["retry-after"]) >= 1
        is_well(served)


def test_an_image_of_a_million_rows_is_refused_by_its_header(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = io.BytesIO()
    Image.new("L", (1, 8_000_000)).save(file, "PNG")
    answers = crowd(served, [file.getvalue()] * 30, FIXED)
    assert Counter((one.status_code, one.json()["error"]["code"]) for one in answers) == {
        (413, "too_large"): 30
    }
    is_well(served)


def test_who_is_refused_is_not_decoded(tiny: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    real = decoding.decode

    def counted(data: bytes, **how: object) -> object:
        decoded.append(data)
        return real(data, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(decoding, "decode", counted)
    with running(tiny, limits=EngineLimits(jobs=2)) as served:
        answers = crowd(served, [png(i, (400, 400)) for i in range(40)], {"X-Metastable-Setting": "langevin"})
        codes = Counter(one.status_code for one in answers)
        assert set(codes) == {200, 503}
        assert len(decoded) == codes[200]
        for one in answers:
            if one.status_code == 503:
                assert one.json()["error"]["code"] == "overloaded"
                assert int(one.headers["retry-after"]) >= 1
        is_well(served)


def test_a_phone_photograph_is_taken(served: Running) -> None:
    """12 megapixels, above 2 MB, on its side."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    file = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    small.resize((4000, 3000)).save(file, "JPEG", quality=95, exif=turned)
    assert len(file.getvalue()) > 2_000_000
    [answer] = crowd(served, [file.getvalue()], FIXED)
    assert answer.json()["image"]["original_size"] == [3000, 4000]
    assert "rotated by EXIF" in answer.json()["image"]["notes"]


def test_nothing_that_a_client_writes_is_logged(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    forged = "forged\nCRITICAL nothing is well"
    httpx.post(served.url + "/classify", data={forged: "x"}, files={"x" + forged: b"y"}, trust_env=False)
    httpx.post(served.url + "/classify", content=forged, params={forged: "x"}, trust_env=False)
    httpx.post(served.url + f"/{quote(forged)}", content=forged, trust_env=False)
    httpx.post(served.url + "/classify", json={forged: forged}, trust_env=False)
    httpx.post(served.url + f"/v2/models/{quote(forged)}/infer", json={forged: forged}, trust_env=False)
    ours = [one for one in caplog.records if not one.name.startswith(("httpx", "httpcore", "asyncio"))]
    assert not any("forged" in one.getMessage() for one in ours)
    is_well(served)
