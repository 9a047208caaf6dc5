"""A classifier of 224 x 224 behind the purifier of photographs, in a real server under the load test."""

import argparse
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from export import bring, mar
from loadtest import __main__ as loadtest
from metastable import anomaly, bundle
from tests.export.test_bring import exported
from tests.launched import PATIENCE, REPOSITORY, launched

SIZE = 224
NAMES = ("dark", "light")


class Light(nn.Module):
    """Logits of two classes, after a few layers as a network has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 7, 4, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        light = 20 * x.mean((1, 2, 3)) + 1e-3 * self.conv(x).mean((1, 2, 3))
        return torch.stack([-light, light], 1)


def pictures(folder: Path, n: int) -> Path:
    """Photographs in that they are larger than the classifier's images, and not square."""
    folder.mkdir()
    rng, rows = np.random.default_rng(0), ["file,label"]
    for i in range(n):
        coarse = (0.2 + 0.6 * (i % 2) + rng.uniform(-0.15, 0.15, (6, 8, 3))) * 255
        large = Image.fromarray(coarse.astype(np.uint8)).resize((400, 300), Image.Resampling.BICUBIC)
        large.save(folder / f"{i:02}.jpg")
        rows.append(f"{i:02}.jpg,{i % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def made(folder: Path, images: Path) -> Path:
    names = folder / "names.txt"
    names.write_text("\n".join(NAMES))
    newcomer = bring.Newcomer(
        file=exported(Light(), folder / "model.onnx", SIZE),
        classes=names,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    out = folder / "bundle"
    bring.bring(newcomer, REPOSITORY / "model_store" / "natural", out, name="light")
    norms = torch.linspace(1, 8, 40)  # of nothing: what is tested is the server
    limit = anomaly.calibrate(norms, false_positive_rate=0.05, network="score", data={"name": "none"})
    bundle.set_anomaly(out, limit)
    assert bundle.load(out).shape == (3, SIZE, SIZE)
    return out


def command(*words: str) -> Any:
    parser = argparse.ArgumentParser()
    loadtest.fill(parser)
    args = parser.parse_args(words)
    return args.run(args)


@pytest.mark.server
@pytest.mark.timeout(3 * PATIENCE)
def test_a_server_of_photographs_under_the_load_test(tmp_path: Path) -> None:
    images = pictures(tmp_path / "pictures", 12)
    folder, archive = made(tmp_path, images), tmp_path / "metastable.mar"
    mar.build(folder, REPOSITORY / "model-config.yaml", archive)
    attacked = tmp_path / "attacked.npz"
    command(
        *("make", "--bundle", str(folder), "--images", str(images), "--test-share", "1", "--n", "4"),
        *("--attack", "transfer", "--steps", "1", "--out", str(attacked)),
    )
    with launched(tmp_path, archive, "--sample", str(images / "01.jpg")) as server:
        server.until_ready()
        found = command(
            *("run", "--url", f"http://127.0.0.1:{server.ports[0]}", "--arm", "none", "--arm", "fast"),
            *("--images", f"{images},{attacked}", "--scenario", "closed", "--rounds", "1", "--warmup", "1"),
            *("--timeout", str(PATIENCE), "--seconds", str(PATIENCE), "--bundle", str(folder)),
            *("--out", str(tmp_path / "report")),
        )
        server.process.send_signal(signal.SIGTERM)
        status, output = server.finish()
        assert status == 0, output
    # Not `verdict`: a busy machine may make the client late.
    assert [(arm["arm"], arm["n"], arm["answered"]) for arm in found["arms"]] == [
        ("none", 16, 16),
        ("fast", 16, 16),
    ]
    lines = (tmp_path / "report" / "requests.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert Counter(record["outcome"] for record in records) == {"answer": 2 * 17}
    assert all(arm["natural"][0] == 1.0 for arm in found["arms"])
