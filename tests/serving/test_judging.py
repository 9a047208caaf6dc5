"""Honest images that change show as drift, in front of a real engine, before most of them are flagged."""

import dataclasses
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from metastable import anomaly, benign, bundle, datasets
from metastable.serving.metrics import SCORE_NORM, SHIFT, STAGES, STATISTICS
from tests.launched import REPOSITORY
from tests.serving.door.running import Running, running

pytestmark = pytest.mark.slow

N, TOGETHER = 120, 30
Shares = dict[str, float]


def honest(count: int, seed: int) -> Tensor:
    """Images of one kind, uint8 [count, 3, 32, 32]: the samples, moved and mirrored by chance."""
    rng = np.random.default_rng(seed)
    files = sorted((REPOSITORY / "samples").glob("*.png"))
    samples = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    drawn = []
    for _ in range(count):
        moved = np.roll(samples[rng.integers(len(samples))], rng.integers(32, size=2), (0, 1))
        drawn.append(moved[:, ::-1] if rng.random() < 0.5 else moved)
    return torch.from_numpy(np.ascontiguousarray(np.stack(drawn).transpose(0, 3, 1, 2)))


def exact(image: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, image.permute(1, 2, 0).numpy())
    return file.getvalue()


@pytest.fixture(scope="module")
def served(shipped: Path) -> Iterator[Running]:
    """The shipped networks behind a door, calibrated on such images."""
    found = bundle.load(shipped)
    norms = anomaly.score_norms(datasets.to_float(honest(400, 0)), found.scores["score"])
    calibration = anomaly.calibrate(norms, false_positive_rate=0.05, network="score", data={})
    with running(dataclasses.replace(found, anomaly=calibration)) as door:
        yield door


@pytest.fixture(scope="module")
def shares(served: Running) -> Callable[[str], Shares]:
    """Of images with a change, as rates of the metrics between before and after would have them."""

    def counts() -> np.ndarray:
        rank = {"statistic": SCORE_NORM}
        flags = served.count("anomaly_flags_total", setting="none", statistic=SCORE_NORM)
        below = [served.count("anomaly_rank_bucket", **rank, le=le) for le in ("0.05", "0.5", "0.95")]
        return np.array([served.count("anomaly_rank_count", **rank), flags, *below])

    def measured(change: str) -> Shares:
        before = counts()
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            for images in benign.changed(honest(N, 1), change).split(TOGETHER):
                files = [("images", exact(image)) for image in images]
                answer = client.post("/classify?setting=none", files=files, timeout=60)
                assert [one["setting"] for one in answer.json()["results"]] == ["none"] * TOGETHER
        images, flagged, lowest, lower, low = counts() - before
        assert images == N
        below = {"above 95 %": 1 - low / N, "above the median": 1 - lower / N, "below 5 %": lowest / N}
        return below | {"flagged": flagged / N}

    return measured


def test_an_answer_is_counted_once_in_everything_that_it_says(served: Running) -> None:
    shift, fast = {"statistic": SHIFT}, {"setting": "fast"}

    def counts() -> dict[str, float]:
        flags = {one: served.count("anomaly_flags_total", **fast, statistic=one) for one in STATISTICS}
        stages = {stage: served.count("stage_seconds_count", stage=stage) for stage in STAGES}
        return (
            flags
            | stages
            | {
                "early": served.count("decided_early_total", **fast),
                "changed": served.count("label_changed_total", **fast),
                "capped": served.count("capped_total", **fast),
                "chains": served.count("chains_sum", **fast),
                "shift": served.count("anomaly_shift_sum", **fast),
                "ranks": served.count("anomaly_rank_count", **shift),
            }
        )

    before = counts()
    sample = (REPOSITORY / "samples" / "cat.png").read_bytes()
    answer = httpx.post(f"{served.url}/classify?setting=fast", content=sample, timeout=60, trust_env=False)
    said = answer.json()
    gained = {name: value - before[name] for name, value in counts().items()}
    assert said["decided"]
    assert said["chains"] < 24
    assert gained == {
        SCORE_NORM: float(said["anomaly"]["flagged"]),
        SHIFT: float(said["anomaly"]["shift"]["flagged"]),
        **dict.fromkeys(STAGES, 1.0),
        "early": 1.0,
        "changed": float(said["label"] != said["unpurified"]["label"]),
        "capped": 0.0,
        "chains": said["chains"],
        "shift": pytest.approx(said["anomaly"]["shift"]["value"], abs=1e-5),
        "ranks": 1.0,
    }


def test_images_like_the_calibrated_ones_show_no_drift(
    served: Running, shares: Callable[[str], Shares]
) -> None:
    found = shares("clean")
    # Two and a half standard deviations of the binomial law.
    assert abs(found["above the median"] - 0.5) < 0.12
    assert found["above 95 %"] < 0.11
    assert found["below 5 %"] < 0.11
    assert found["flagged"] < 0.11
    version = served.backend.served.version
    labels = {"version": version, "statistic": SCORE_NORM, "setting": ""}
    assert served.count("anomaly_expected_flag_ratio", **labels) == 0.05
    assert served.count("anomaly_calibrated_value", **labels, share="0.5") > 0


@pytest.mark.parametrize("change", ["brighter", "more-contrast", "sharpened", "noise2"])
def test_changed_images_move_up(change: str, shares: Callable[[str], Shares]) -> None:
    found = shares(change)
    assert found["above the median"] > 0.65
    assert found["above the median"] > found["flagged"] + 0.1  # it is seen on images that nobody refuses


@pytest.mark.parametrize("change", ["blur", "jpeg50"])
def test_changed_images_move_down_where_no_flag_sees_them(
    change: str, shares: Callable[[str], Shares]
) -> None:
    found = shares(change)
    assert found["flagged"] < 0.05
    assert found["above the median"] < 0.35
